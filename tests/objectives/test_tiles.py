"""Tiles of logits against the whole matrix, in float64 and to rounding in float32."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmlab.objectives import tiles

DIM = 4
ROWS = st.integers(1, 11)
SIDE = st.integers(1, 12)
DTYPE = st.sampled_from([torch.float64, torch.float32])
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def blocks(n: int, m: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 * n + m)
    return tuple(3 * torch.randn(rows, DIM, generator=generator, dtype=dtype) for rows in (n, m))  # type: ignore[return-value]


@given(ROWS, ROWS, SIDE)
@settings(max_examples=50, deadline=None)
def test_tiles_cover_every_pair_once_and_are_even(n: int, m: int, side: int) -> None:
    x, y = blocks(n, m, torch.float64)
    covered = torch.zeros(n, m)
    heights, widths = set(), set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "largest_side", lambda device: side)
        for rows, columns, logits in tiles.tiles(x, y):
            covered[rows, columns] += 1
            heights.add(logits.shape[0])
            widths.add(logits.shape[1])
            torch.testing.assert_close(logits, x[rows] @ y[columns].T, rtol=1e-12, atol=1e-12)
    assert (covered == 1).all()
    for sizes in (heights, widths):
        assert max(sizes) <= side
        assert max(sizes) - min(sizes) <= 1


@given(ROWS, ROWS, SIDE, DTYPE)
@settings(max_examples=50, deadline=None)
def test_sums_and_gradients_are_those_of_the_matrix(n: int, m: int, side: int, dtype: torch.dtype) -> None:
    x, y = blocks(n, m, dtype)
    logits = (x @ y.T).requires_grad_()
    logits.sin().sum().backward()
    slope = logits.grad
    assert slope is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "largest_side", lambda device: side)
        found = (
            *tiles.log_sum_exps(x, y),
            tiles.softplus_sums(x, y),
            *tiles.gradients(x, y, lambda tile: tile.logits.cos_()),
        )
    matrix = logits.detach()
    expected = (
        *(matrix.logsumexp(dim) for dim in (1, 0)),
        torch.logaddexp(matrix, torch.zeros_like(matrix)).sum(1),
        slope @ y,
        slope.T @ x,
    )
    tolerance = TOLERANCE[dtype]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=10 * tolerance)


def test_a_logit_far_out_neither_overflows_nor_vanishes() -> None:
    x, y = torch.tensor([[100.0], [-100.0]]), torch.tensor([[10.0]])
    of_rows, of_column = tiles.log_sum_exps(x, y)
    assert of_rows.tolist() == [1000, -1000]
    assert of_column.tolist() == [1000]
    assert tiles.softplus_sums(x, y).tolist() == [1000, 0]


def test_sides_on_a_cpu_fit_its_cache() -> None:
    assert tiles.largest_side(torch.device("cpu")) ** 2 * 4 <= 2**22
    assert tiles.largest_side(torch.device("cuda")) >= 2048
