"""The losses against loops in float64 and against torch's cross-entropy, in one tile and in many."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmlab.batch import NOBODY, Embeddings
from mmlab.objectives import contrastive, tiles
from mmlab.objectives.contrastive import InfoNCE, SigmoidLoss

SCALE, BIAS = 5.0, -1.5


@pytest.fixture(scope="module", autouse=True, params=[3, None], ids=["tiles of 3", "one tile"])
def side(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test in tiles that the rows do not fill evenly, too."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param is not None:
            patch.setattr(tiles, "largest_side", lambda device: request.param)
        yield


def embeddings(groups: list[int], *, seed: int, dim: int = 6) -> Embeddings:
    generator = torch.Generator().manual_seed(seed)
    vector = torch.randn(len(groups), dim, generator=generator, dtype=torch.float64)
    return Embeddings(F.normalize(vector, dim=1), torch.tensor(groups), torch.arange(len(groups)))


def naive_info_nce(a: Embeddings, b: Embeddings) -> float:
    directions = []
    for queries, candidates in ((a, b), (b, a)):
        losses = []
        for x, own in zip(queries.vector, queries.group.tolist(), strict=True):
            logits = {
                j: SCALE * float(x @ y)
                for j, (y, g) in enumerate(zip(candidates.vector, candidates.group.tolist(), strict=True))
                if g != NOBODY
            }
            positives = [j for j in logits if int(candidates.group[j]) == own]
            if own != NOBODY and positives:
                log_sum = math.log(sum(math.exp(v) for v in logits.values()))
                losses.append(-sum(logits[j] - log_sum for j in positives) / len(positives))
        directions.append(sum(losses) / len(losses) if losses else 0.0)
    return sum(directions) / 2


def naive_sigmoid(a: Embeddings, b: Embeddings) -> float:
    loss = 0.0
    for x, own in zip(a.vector, a.group.tolist(), strict=True):
        for y, other in zip(b.vector, b.group.tolist(), strict=True):
            if NOBODY not in (own, other):
                sign = 1 if own == other else -1
                loss += math.log1p(math.exp(-sign * (SCALE * float(x @ y) + BIAS)))
    rows = (sum(g != NOBODY for g in a.group.tolist()) + sum(g != NOBODY for g in b.group.tolist())) / 2
    return loss / max(rows, 1)


def info_nce(a: Embeddings, b: Embeddings, scale: Tensor | float) -> Tensor:
    return contrastive.info_nce(a, b, scale).value


def sigmoid(a: Embeddings, b: Embeddings, scale: Tensor | float, bias: float = BIAS) -> Tensor:
    return contrastive.sigmoid_loss(a, b, scale, bias).value


LOSSES = pytest.mark.parametrize("loss", [info_nce, sigmoid], ids=["info_nce", "sigmoid"])
GROUPS = st.lists(st.integers(NOBODY, 3), min_size=1, max_size=7)


@given(GROUPS, GROUPS, st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_any_groups_match_a_loop_over_pairs(left: list[int], right: list[int], seed: int) -> None:
    a, b = embeddings(left, seed=seed), embeddings(right, seed=seed + 1)
    assert info_nce(a, b, SCALE).item() == pytest.approx(naive_info_nce(a, b), abs=1e-10)
    assert sigmoid(a, b, SCALE).item() == pytest.approx(naive_sigmoid(a, b), abs=1e-10)


def test_unique_groups_give_the_loss_of_clip() -> None:
    a, b = embeddings(list(range(8)), seed=0), embeddings(list(range(8)), seed=1)
    logits, target = SCALE * a.vector @ b.vector.T, torch.arange(8)
    clip = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(info_nce(a, b, SCALE), clip, rtol=1e-12, atol=0)


@LOSSES
@given(GROUPS, GROUPS)
@settings(max_examples=15, deadline=None)
def test_symmetric_and_blind_to_rows_that_take_no_part(
    loss: Callable[..., Tensor], left: list[int], right: list[int]
) -> None:
    a, b = embeddings(left, seed=0), embeddings(right, seed=1)
    torch.testing.assert_close(loss(a, b, SCALE), loss(b, a, SCALE), rtol=1e-10, atol=1e-12)
    noise = torch.full_like(a.vector, torch.nan)
    more = Embeddings(
        torch.cat([noise, a.vector]).requires_grad_(),
        torch.cat([torch.full_like(a.group, NOBODY), a.group]),
        torch.cat([a.place, a.place]),
    )
    value = loss(more, b, SCALE)
    torch.testing.assert_close(value, loss(a, b, SCALE), rtol=1e-10, atol=1e-12)
    (gradient,) = torch.autograd.grad(value, more.vector)
    assert (gradient[: len(left)] == 0).all()
    assert gradient.isfinite().all()


@LOSSES
@pytest.mark.parametrize(("left", "right"), [([NOBODY] * 3, [0, 1, 2]), ([NOBODY] * 3, [NOBODY] * 3)])
def test_no_valid_pair_gives_zero_with_a_graph(
    loss: Callable[..., Tensor], left: list[int], right: list[int]
) -> None:
    a, b = embeddings(left, seed=0), embeddings(right, seed=1)
    scale = torch.tensor([SCALE], dtype=torch.float64, requires_grad=True)
    a.vector.requires_grad_()
    b.vector.requires_grad_()
    value = loss(a, b, scale)
    assert value.item() == 0
    for gradient in torch.autograd.grad(value, (a.vector, b.vector, scale)):
        assert (gradient == 0).all()


def test_rows_without_a_partner_are_negatives_only() -> None:
    a, b = embeddings([0, 1], seed=0), embeddings([0, 1, 7], seed=1)
    fewer = Embeddings(b.vector[:2], b.group[:2], b.place[:2])
    assert info_nce(a, b, SCALE) > info_nce(a, fewer, SCALE)


@LOSSES
@pytest.mark.parametrize(
    ("left", "right"),
    [
        ([0, 0, 1, NOBODY], [1, 0, 2, NOBODY]),
        ([0, 1, 2, 3, 4, 2, NOBODY], [4, 3, 3, 0, 1]),
        ([0, 1], [NOBODY, 5, 1, 1, 0, 7, 1, NOBODY]),
        ([0, 1, 2, 3], [4, 5, NOBODY, NOBODY]),
    ],
    ids=["several", "longer", "wider", "no positive"],
)
def test_gradients_against_finite_differences(
    loss: Callable[..., Tensor], left: list[int], right: list[int]
) -> None:
    a, b = embeddings(left, seed=0, dim=3), embeddings(right, seed=1, dim=3)
    learnt = [torch.tensor([SCALE], dtype=torch.float64, requires_grad=True)]
    if loss is sigmoid:
        learnt.append(torch.tensor([BIAS], dtype=torch.float64, requires_grad=True))

    def function(x: Tensor, y: Tensor, *learnt: Tensor) -> Tensor:
        return loss(a._replace(vector=x), b._replace(vector=y), *learnt)

    vectors = a.vector.requires_grad_(), b.vector.requires_grad_()
    assert torch.autograd.gradcheck(function, (*vectors, *learnt))


@LOSSES
def test_large_logits_neither_overflow_nor_vanish(loss: Callable[..., Tensor]) -> None:
    a, b = embeddings([0, 1, 2, 3], seed=0), embeddings([0, 1, 2, 3], seed=1)
    a = a._replace(vector=torch.cat([b.vector[:2], -b.vector[2:]]))
    exact = loss(a, b, 100.0)
    rounded = loss(*(rows._replace(vector=rows.vector.float()) for rows in (a, b)), 100.0)
    assert 40 < exact < 200
    torch.testing.assert_close(rounded.double(), exact, rtol=1e-6, atol=0)


@LOSSES
def test_autocast_does_not_round_similarities(loss: Callable[..., Tensor]) -> None:
    a, b = (
        rows._replace(vector=rows.vector.float().requires_grad_())
        for rows in (embeddings([0, 1, 1], seed=0), embeddings([0, 1, 2], seed=1))
    )
    exact = loss(a, b, SCALE)
    gradients = torch.autograd.grad(exact, (a.vector, b.vector))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = loss(a, b, SCALE)
        within = torch.autograd.grad(rounded, (a.vector, b.vector))
    assert rounded == exact
    assert exact.dtype == torch.float32
    assert all(map(torch.equal, within, gradients))


@LOSSES
def test_low_precision_is_compared_in_float32(loss: Callable[..., Tensor]) -> None:
    a, b = embeddings([0, 1, 1], seed=0), embeddings([0, 1, 2], seed=1)
    low = [rows._replace(vector=rows.vector.bfloat16().requires_grad_()) for rows in (a, b)]
    full = [rows._replace(vector=rows.vector.detach().float()) for rows in low]
    value = loss(*low, SCALE)
    assert value.dtype == torch.float32
    assert value == loss(*full, SCALE)
    gradient, _ = torch.autograd.grad(value, [rows.vector for rows in low])
    assert gradient.dtype == torch.bfloat16


def test_modules_start_where_the_papers_do() -> None:
    a, b = embeddings([0, 1, 2], seed=0), embeddings([0, 1, 2], seed=1)
    torch.testing.assert_close(InfoNCE()(a, b).value, info_nce(a, b, 1 / 0.07), rtol=1e-6, atol=0)
    torch.testing.assert_close(SigmoidLoss()(a, b).value, sigmoid(a, b, 10.0, -10.0), rtol=1e-6, atol=0)
    assert {name: p.shape for name, p in SigmoidLoss().named_parameters()} == {
        "log_scale": (1,),
        "bias": (1,),
    }
    assert {name: p.shape for name, p in InfoNCE().named_parameters()} == {"log_scale": (1,)}
    fixed = InfoNCE(learnable=False)
    assert not list(fixed.parameters())
    assert fixed.state_dict().keys() == InfoNCE().state_dict().keys()


def test_scale_stays_below_its_limit_and_comes_back() -> None:
    objective = InfoNCE(max_scale=20.0)
    a = embeddings([0, 1, 2], seed=0)
    b = a._replace(vector=-a.vector)  # opposites: the lower the scale, the better
    with torch.no_grad():
        objective.log_scale.fill_(math.log(50.0))
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.1)
    loss = objective(a, b).value
    torch.testing.assert_close(loss, info_nce(a, b, 20.0), rtol=1e-5, atol=0)
    loss.backward()
    optimizer.step()
    assert objective.scale.item() < 19.9


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: InfoNCE(0.0), "temperature=0"),
        (lambda: SigmoidLoss(-1.0), "temperature=-1"),
        (lambda: InfoNCE(0.001), "at least 0.01"),
    ],
)
def test_impossible_temperatures_are_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
