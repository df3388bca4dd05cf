"""The losses against loops in float64, against torch's cross-entropy, and on two ranks against one."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmlab import collectives
from mmlab.batch import NOBODY, Embeddings
from mmlab.objectives import contrastive
from mmlab.objectives.contrastive import InfoNCE, SigmoidLoss

SCALE, BIAS = 5.0, -1.5


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
@settings(max_examples=100, deadline=None)
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
@settings(max_examples=30, deadline=None)
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
def test_gradient_against_finite_differences(loss: Callable[..., Tensor]) -> None:
    a, b = embeddings([0, 0, 1, NOBODY], seed=0), embeddings([1, 0, 2, NOBODY], seed=1)
    scale = torch.tensor([SCALE], dtype=torch.float64, requires_grad=True)

    def function(x: Tensor, y: Tensor, s: Tensor) -> Tensor:
        return loss(a._replace(vector=x), b._replace(vector=y), s)

    assert torch.autograd.gradcheck(function, (a.vector.requires_grad_(), b.vector.requires_grad_(), scale))


@LOSSES
def test_autocast_does_not_round_similarities(loss: Callable[..., Tensor]) -> None:
    a, b = (
        rows._replace(vector=rows.vector.float())
        for rows in (embeddings([0, 1, 1], seed=0), embeddings([0, 1, 2], seed=1))
    )
    exact = loss(a, b, SCALE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(a, b, SCALE) == exact
    assert exact.dtype == torch.float32


def part_of_rank(name: str, left: list[int], right: list[int]) -> tuple[float, list[Tensor]]:
    """Loss and gradients of one rank, which owns one half of the rows; of everything in one process."""
    loss: Callable[..., Tensor] = {"info_nce": info_nce, "sigmoid": sigmoid}[name]
    share = collectives.world_size()
    shares = []
    for groups, seed in ((left, 0), (right, 1)):
        rows = embeddings(groups, seed=seed)
        here = slice(
            collectives.rank() * len(groups) // share, (collectives.rank() + 1) * len(groups) // share
        )
        shares.append(Embeddings(rows.vector[here].requires_grad_(), rows.group[here], rows.place[here]))
    a, b = shares
    scale = torch.tensor([SCALE], dtype=torch.float64, requires_grad=True)
    value = loss(a, b, scale)
    return value.item(), list(torch.autograd.grad(value, (a.vector, b.vector, scale)))


@pytest.mark.parametrize("name", ["info_nce", "sigmoid"])
@pytest.mark.parametrize(
    ("left", "right"),
    [
        ([0, 1, 2, 3], [0, 1, 2, 3]),
        ([0, 1, 1, 2, 5, 0], [1, 2, 0, 1]),
        ([0, NOBODY, 2, 3], [0, 2, NOBODY, NOBODY]),
        ([0, 1, NOBODY, NOBODY], [NOBODY, NOBODY, 1, 0]),
        ([0, 1, NOBODY, NOBODY], [0, 1, NOBODY, NOBODY]),
    ],
    ids=["unique", "several", "missing", "crossed", "second rank empty"],
)
def test_two_ranks_equal_one(ranks, name: str, left: list[int], right: list[int]) -> None:
    value, (a, b, scale) = part_of_rank(name, left, right)
    answers = ranks(part_of_rank, name, left, right)
    assert sum(answer[0] for answer in answers) / 2 == pytest.approx(value, abs=1e-10)
    gradients = [answer[1] for answer in answers]
    # The optimizer sees the mean over ranks; each rank's rows meet one rank only.
    torch.testing.assert_close(torch.cat([g[0] for g in gradients]) / 2, a, rtol=0, atol=1e-10)
    torch.testing.assert_close(torch.cat([g[1] for g in gradients]) / 2, b, rtol=0, atol=1e-10)
    torch.testing.assert_close((gradients[0][2] + gradients[1][2]) / 2, scale, rtol=0, atol=1e-10)


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
