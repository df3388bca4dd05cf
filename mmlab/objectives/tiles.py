"""Logits between two blocks of rows, a tile at a time: their sums by row and by column, and gradients.

The logit of a pair is the dot product of its rows. The matrix of all pairs never exists: beside the blocks
and what is returned, three tiles are held, and the gradient computes each tile again instead of keeping it.
For blocks of n and m rows in float32 that is 4 (n + m) dim + 12 side^2 bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


class Tile(NamedTuple):
    """The pairs of some rows of one block with some rows of the other."""

    rows: slice
    columns: slice
    logits: Float[Tensor, "rows columns"]


def largest_side(device: torch.device) -> int:
    """Rows and columns of a tile at most.

    On a CPU a tile shall stay in the cache: 4 MiB in float32; of 256 to 2,048 rows this was the fastest. On a
    GPU the work on a tile shall take longer than launching it, and 4,096 x 4,096 take 64 MiB.
    """
    return 1024 if device.type == "cpu" else 4096


def tiles(x: Float[Tensor, "x dim"], y: Float[Tensor, "y dim"]) -> Iterator[Tile]:
    """Cut the matrix of all pairs into tiles of about equal size; each overwrites the one before."""
    side = largest_side(x.device)
    room = x.new_empty(min(side, len(x)) * min(side, len(y)))
    for rows in _spans(len(x), side):
        for columns in _spans(len(y), side):
            above, beside = x[rows], y[columns]
            logits = room[: len(above) * len(beside)].view(len(above), len(beside))
            yield Tile(rows, columns, torch.mm(above, beside.T, out=logits))


def _spans(count: int, most: int) -> list[slice]:
    """The fewest slices of at most so many rows, equal but for rounding."""
    parts = -(-count // most)
    edges = [count * part // parts for part in range(parts)] + [count]
    return [slice(*ends) for ends in pairwise(edges)]


def log_sum_exps(
    x: Float[Tensor, "x dim"], y: Float[Tensor, "y dim"]
) -> tuple[Float[Tensor, " x"], Float[Tensor, " y"]]:
    """log(sum(exp(logit))) of each row over all columns, and of each column over all rows."""
    of_x, of_y = x.new_full((len(x),), -torch.inf), y.new_full((len(y),), -torch.inf)
    for rows, columns, logits in tiles(x, y):
        torch.logaddexp(of_x[rows], logits.logsumexp(dim=1), out=of_x[rows])
        torch.logaddexp(of_y[columns], logits.logsumexp(dim=0), out=of_y[columns])
    return of_x, of_y


def softplus_sums(x: Float[Tensor, "x dim"], y: Float[Tensor, "y dim"]) -> Float[Tensor, " x"]:
    """The sum of log(1 + exp(logit)) of each row over all columns."""
    sums = x.new_zeros(len(x))
    for rows, _, logits in tiles(x, y):
        # By default torch takes the logit itself from 20 on, which float64 can tell.
        sums[rows] += F.softplus(logits, threshold=40).sum(dim=1)
    return sums


def gradients(
    x: Float[Tensor, "x dim"], y: Float[Tensor, "y dim"], of_logits: Callable[[Tile], Tensor]
) -> tuple[Float[Tensor, "x dim"], Float[Tensor, "y dim"]]:
    """The gradient of both blocks from that of the logits.

    Args:
        x: One block.
        y: The other.
        of_logits: The gradient of a tile's logits, which it may overwrite.
    """
    of_x, of_y = torch.zeros_like(x), torch.zeros_like(y)
    for tile in tiles(x, y):
        gradient = of_logits(tile)
        of_x[tile.rows].addmm_(gradient, y[tile.columns])
        of_y[tile.columns].addmm_(gradient.T, x[tile.rows])
    return of_x, of_y
