"""Sums over all pairs against one matrix with autograd, for any gradient that comes in; what they hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmlab.batch import NOBODY
from mmlab.objectives import tiles
from mmlab.objectives.pairs import Side, sigmoid_sums, softmax_sums

DIM, TILE = 8, 4
GROUPS = st.lists(st.integers(NOBODY, 3), min_size=1, max_size=9)
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4}


@pytest.fixture(scope="module", autouse=True)
def small_tiles() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "largest_side", lambda device: TILE)
        yield


def side(groups: list[int], seed: int, dtype: torch.dtype = torch.float64) -> Side:
    generator = torch.Generator().manual_seed(seed)
    vector = torch.randn(len(groups), DIM, generator=generator, dtype=dtype)
    return Side(vector.requires_grad_(), torch.tensor(groups))


def softmax_by_tile(x: Side, y: Side) -> tuple[Tensor, ...]:
    of_x, of_y = softmax_sums(x, y)
    return *of_x, *of_y


def softmax_by_matrix(x: Side, y: Side) -> tuple[Tensor, ...]:
    logits = x.vector @ y.vector.T
    positive = torch.where((x.group[:, None] == y.group) & (y.group != NOBODY), logits, 0.0)
    return logits.logsumexp(1), positive.sum(1), logits.logsumexp(0), positive.sum(0)


def sigmoid_by_matrix(x: Side, y: Side) -> tuple[Tensor, ...]:
    logits = x.vector @ y.vector.T
    positive = torch.where((x.group[:, None] == y.group) & (y.group != NOBODY), logits, 0.0)
    return torch.logaddexp(logits, torch.zeros_like(logits)).sum(1), positive.sum(1)


KINDS: dict[str, tuple[Callable[[Side, Side], tuple[Tensor, ...]], ...]] = {
    "softmax": (softmax_by_tile, softmax_by_matrix),
    "sigmoid": (sigmoid_sums, sigmoid_by_matrix),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@given(GROUPS, GROUPS)
@settings(max_examples=25, deadline=None)
def test_any_gradient_of_any_sum_comes_through(
    kind: str, dtype: torch.dtype, left: list[int], right: list[int]
) -> None:
    x, y = side(left, 0, dtype), side(right, 1, dtype)
    found = []
    for function in KINDS[kind]:
        sums = function(x, y)
        generator = torch.Generator().manual_seed(7)
        incoming = [torch.randn(s.shape, generator=generator, dtype=torch.float64).to(dtype) for s in sums]
        found.append((*sums, *torch.autograd.grad(sums, (x.vector, y.vector), incoming)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=TOLERANCE[dtype])


class Largest(TorchDispatchMode):
    """Notes how many entries the largest result of an operation has."""

    entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.entries = max([self.entries, *sizes])
        return result


def largest_tensor(kind: str, which: int, rows: int) -> int:
    """Entries of the largest tensor that this rank makes in both passes."""
    x, y = side(list(range(rows)), 0), side(list(range(rows)), 1)
    with pytest.MonkeyPatch.context() as patch, Largest() as largest:
        patch.setattr(tiles, "largest_side", lambda device: TILE)
        torch.autograd.grad(sum(s.sum() for s in KINDS[kind][which](x, y)), (x.vector, y.vector))
    return largest.entries


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_grows_with_the_square_of_the_rows(kind: str) -> None:
    assert largest_tensor(kind, 1, 96) == 96 * 96
    assert largest_tensor(kind, 0, 96) <= (96 + 1) * DIM


@pytest.mark.parametrize("kind", KINDS)
def test_no_rank_holds_the_rows_of_all_in_one_tensor(ranks: Any, kind: str) -> None:
    assert max(ranks(largest_tensor, kind, 0, 96)) <= (96 + 1) * DIM
