"""The losses on 1, 2 and 4 gloo ranks against the global loss in one matrix, in float64; the ring itself."""

from __future__ import annotations

import time
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from mmlab import collectives
from mmlab.batch import NOBODY, Embeddings
from mmlab.objectives import tiles
from mmlab.objectives.contrastive import info_nce, sigmoid_loss

DIM, TILE = 6, 3
SCALE, BIAS = 5.0, -1.5
N = NOBODY
CASES: dict[str, tuple[list[int], ...]] = {
    # Groups of all rows of each modality; each rank owns an equal part of them, in this order.
    "unique": ([0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5, 6, 7]),
    "two captions each": ([0, 1, 2, 3], [0, 0, 1, 1, 2, 2, 3, 3]),
    "many a rank": ([*range(16), *range(16)], [*range(24), *range(8, 0, -1)]),
    "positives on other ranks": ([0, 1, 2, 0, 4, 2, 0, 9], [9, 2, 0, 0, 1, 7, 7, 4]),
    "missing on some ranks": ([0, 1, N, N, 4, 5, 6, N], [0, 1, 2, 3, N, N, 6, 0], [N, N, 2, 3, 4, N, 6, 4]),
    "nothing on the last rank": (
        [0, 1, 2, 3, 4, 5, N, N],
        [0, 2, 2, 3, 4, 1, N, N],
        [0, 1, N, 3, 4, 5, N, N],
    ),
    "a modality nowhere": ([0, 1, 2, 3], [0, 1, 2, 3], [N, N, N, N]),
    "no positive": ([0, 1, 2, 3], [4, 5, 6, N], [7, 8, N, 9]),
    "nothing": ([N, N, N, N], [N, N, N, N]),
}
LOSSES = ("info_nce", "sigmoid")
WEIGHTS = {"mean": (1.0, 1.0, 1.0, 1.0), "uneven": (0.5, -1.0, 0.0, 3.0)}
"""What each rank multiplies its value with before the backward pass."""


class Found(NamedTuple):
    """A loss, and the gradients of the mean over ranks of what they made of it."""

    value: float
    gradients: list[Tensor]
    """Of the vectors of each modality, of scale and of bias."""


def rows_of(case: str, dtype: torch.dtype) -> list[Embeddings]:
    """All rows of the global batch."""
    found = []
    for seed, groups in enumerate(CASES[case]):
        generator = torch.Generator().manual_seed(seed)
        vector = torch.randn(len(groups), DIM, generator=generator, dtype=torch.float64)
        place = torch.arange(len(groups))
        found.append(Embeddings(F.normalize(vector, dim=1).to(dtype), torch.tensor(groups), place))
    return found


def settings(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    scale, bias = (torch.tensor([number], dtype=dtype, requires_grad=True) for number in (SCALE, BIAS))
    return scale, bias


def part_of_rank(case: str, loss: str, dtype: torch.dtype, weights: str, side: int) -> Found:
    """The sum over all pairs of modalities, on the rows of this rank."""
    rank, ranks = collectives.rank(), collectives.world_size()
    mine = []
    for rows in rows_of(case, dtype):
        share = len(rows.group) // ranks
        here = Embeddings(*(field[rank * share : (rank + 1) * share] for field in rows))
        mine.append(here._replace(vector=here.vector.clone().requires_grad_()))
    scale, bias = settings(dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "largest_side", lambda device: side)
        value = torch.zeros(())
        for a, b in combinations(mine, 2):
            value = (
                value + (info_nce(a, b, scale) if loss == "info_nce" else sigmoid_loss(a, b, scale, bias))[0]
            )
        wanted = [*(rows.vector for rows in mine), scale, bias]
        gradients = torch.autograd.grad(WEIGHTS[weights][rank] * value, wanted, materialize_grads=True)
    return Found(value.item(), [gradient / ranks for gradient in gradients])


def by_matrix(case: str, loss: str, weights: str, ranks: int) -> Found:
    """The definition, in one process: each rank's terms of the global sums, with the weight of the rank."""
    rows = [r._replace(vector=r.vector.requires_grad_()) for r in rows_of(case, torch.float64)]
    scale, bias = settings(torch.float64)
    value, weighted = torch.zeros(()), torch.zeros(())
    for a, b in combinations(rows, 2):
        valid = (a.group != NOBODY)[:, None] & (b.group != NOBODY)
        positive = (a.group[:, None] == b.group) & valid
        logits = scale * a.vector @ b.vector.T
        if loss == "info_nce":
            terms = [_cross_entropy(logits, positive, valid), _cross_entropy(logits.T, positive.T, valid.T)]
        else:
            count = ((a.group != NOBODY).sum() + (b.group != NOBODY).sum()) / 2
            signed = torch.where(positive, 1.0, -1.0) * (logits + bias)
            terms = [torch.where(valid, -F.logsigmoid(signed), 0.0).sum(1) / count.clamp(min=1)]
        for term in terms:
            by_rank = torch.tensor(WEIGHTS[weights][:ranks]).repeat_interleave(len(term) // ranks)
            value, weighted = value + term.sum(), weighted + (by_rank * term).sum()
    wanted = [*(r.vector for r in rows), scale, bias]
    return Found(value.item(), list(torch.autograd.grad(weighted, wanted, materialize_grads=True)))


def _cross_entropy(logits: Tensor, positive: Tensor, valid: Tensor) -> Tensor:
    """What each row adds to half the mean over rows that have a positive."""
    matched = positive.any(1)
    normaliser = logits.masked_fill(~valid, -1e9).logsumexp(1)
    mean = torch.where(positive, logits, 0.0).sum(1) / positive.sum(1).clamp(min=1)
    return torch.where(matched, normaliser - mean, 0.0) / matched.sum().clamp(min=1) / 2


def check(answers: list[Found], expected: Found, tolerance: float) -> None:
    """The mean of the ranks' values; each rank's rows; the mean over ranks of what all of them share."""
    assert sum(a.value for a in answers) / len(answers) == pytest.approx(expected.value, abs=tolerance)
    *vectors, scale, bias = zip(*(a.gradients for a in answers), strict=True)
    found = [*map(torch.cat, vectors), sum(scale), sum(bias)]
    for one, other in zip(found, expected.gradients, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0, atol=tolerance)


def both_precisions(case: str, loss: str, weights: str) -> list[Found]:
    """In float64 in small tiles and in one, and in float32."""
    runs = ((torch.float64, TILE), (torch.float64, 64), (torch.float32, TILE))
    return [part_of_rank(case, loss, dtype, weights, side) for dtype, side in runs]


def check_all(by_rank: list[list[Found]], case: str, loss: str, weights: str) -> None:
    expected = by_matrix(case, loss, weights, len(by_rank))
    for answers, tolerance in zip(zip(*by_rank, strict=True), (1e-12, 1e-12, 5e-6), strict=True):
        check(list(answers), expected, tolerance)


every_case = pytest.mark.parametrize(
    ("case", "loss", "weights"), [(c, name, w) for c in CASES for name in LOSSES for w in WEIGHTS]
)


@every_case
def test_one_rank_has_the_global_loss(case: str, loss: str, weights: str) -> None:
    check_all([both_precisions(case, loss, weights)], case, loss, weights)


@every_case
def test_two_ranks_have_the_global_loss(ranks: Any, case: str, loss: str, weights: str) -> None:
    check_all(ranks(both_precisions, case, loss, weights), case, loss, weights)


def go_round() -> tuple[list[Tensor], list[Tensor]]:
    """Two exchanges under way at once, one of two tensors, on ranks that are not equally fast."""
    rank = collectives.rank()
    time.sleep(0.05 * rank)
    numbers, table = torch.tensor([rank, rank + 10]), torch.full((2, 3), rank + 0.5).T
    first = collectives.pass_on((numbers, table))
    second = collectives.pass_on((numbers + 100,))
    assert collectives.pass_on(()).wait() == ()
    return [tensor.clone() for tensor in second.wait()], list(first.wait())


def check_round(answers: list[tuple[list[Tensor], list[Tensor]]]) -> None:
    for rank, (second, first) in enumerate(answers):
        previous = (rank - 1) % len(answers)
        assert second[0].tolist() == [previous + 100, previous + 110]
        assert first[0].tolist() == [previous, previous + 10]
        assert torch.equal(first[1], torch.full((3, 2), previous + 0.5))


def test_each_rank_receives_from_the_previous_one(ranks: Any) -> None:
    check_round([go_round()])
    check_round(ranks(go_round))


def run_rank(rank: int, folder: Path) -> None:
    """One of four processes: everything, into a file."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=4)
    cases = [(c, name, w) for c in CASES for name in LOSSES for w in WEIGHTS]
    found = {case: both_precisions(*case) for case in cases}
    torch.save((found, go_round()), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_four_ranks_have_the_global_loss(tmp_path: Path) -> None:
    spawn(run_rank, args=(tmp_path,), nprocs=4)
    answers = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(4)]
    for case in answers[0][0]:
        check_all([found[case] for found, _ in answers], *case)
    check_round([round_ for _, round_ in answers])
