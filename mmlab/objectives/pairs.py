"""Sums over all pairs of two sides, over all ranks, with gradient and in memory linear in the rows.

The logit of a pair is the dot product of its rows, and pairs of equal group are positive. A rank compares
its rows of one side with those of the other side of every rank, block by block, as these go round the ring
(:mod:`~mmlab.objectives.ring`), and each block tile by tile (:mod:`~mmlab.objectives.tiles`), as Cheng et
al. 2024 (arXiv:2410.17243) do for the softmax and Zhai et al. 2023 (arXiv:2303.15343, section 3.3) for the
sigmoid. Every logit is computed once in the forward pass, for the sums of its row and of its column, and once
more in the backward pass, for the gradients of both: four matrix products instead of the three that keeping
all logits takes. A visiting block carries the sums of its columns, and in the backward pass its gradient.

Of the positive pairs only sums are needed, and sum_p x.y_p = x.(sum_p y_p), so they cost no pass over tiles.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmlab.batch import NOBODY
from mmlab.objectives.ring import Tensors, travel
from mmlab.objectives.tiles import Tile, gradients, log_sum_exps, softplus_sums


class Side(NamedTuple):
    """This rank's rows of one side."""

    vector: Float[Tensor, "rows dim"]
    group: Int64[Tensor, " rows"]
    """Rows of one group are positive pairs; those of :data:`~mmlab.batch.NOBODY` with no row at all."""


class RowSums(NamedTuple):
    """Sums of each row over the rows of the other side on all ranks."""

    every: Float[Tensor, " rows"]
    """Over all pairs: log(sum(exp(logit))), or the sum of log(1 + exp(logit))."""
    positive: Float[Tensor, " rows"]
    """The sum of the logits of positive pairs."""


def softmax_sums(x: Side, y: Side) -> tuple[RowSums, RowSums]:
    """The logarithm of the sum of exponentials for each row of both sides.

    Every rank must call this, with as many rows as the others, and all must take the backward pass or none.
    Gradients are those of the sum over ranks of whatever each makes of its sums.
    """
    if len(y.group) > len(x.group):
        of_y, of_x = softmax_sums(y, x)  # the smaller block travels
        return of_x, of_y
    every_x, positive_x, every_y, positive_y = _Softmax.apply(*x, *y)
    return RowSums(every_x, positive_x), RowSums(every_y, positive_y)


def sigmoid_sums(x: Side, y: Side) -> RowSums:
    """The sum of log(1 + exp(logit)) for each row of `x`; ranks as for :func:`softmax_sums`."""
    return RowSums(*_Sigmoid.apply(*x, *y))


class _Matching:
    """Which rows of two blocks are of the same group."""

    def __init__(self, x_group: Tensor, y_group: Tensor) -> None:
        known = x_group.sort().values
        self.rows = len(known)
        # Where its group begins in `known` is the slot of a row. Rows that match nothing get one more, so
        # that no shape depends on the data: the host would have to wait for it.
        self.x_slot = torch.searchsorted(known, x_group)
        slot = torch.searchsorted(known, y_group)
        found = (known[slot.clamp(max=self.rows - 1)] == y_group) & (y_group != NOBODY)
        self.y_slot = torch.where(found, slot, self.rows)

    def sums_for_x(self, y: Tensor) -> Tensor:
        """For each row of x the sum of the rows of y that match it."""
        return self._sums(self.y_slot, y).index_select(0, self.x_slot)

    def sums_for_y(self, x: Tensor) -> Tensor:
        """For each row of y the sum of the rows of x that match it."""
        return self._sums(self.x_slot, x).index_select(0, self.y_slot)

    def _sums(self, slot: Tensor, rows: Tensor) -> Tensor:
        """The sum of the rows of each slot."""
        return rows.new_zeros(self.rows + 1, rows.shape[1]).index_add_(0, slot, rows)


class _Softmax(torch.autograd.Function):
    """The function of :func:`softmax_sums`.

    With p the softmax of a logit in its row and q in its column, the gradient of the logit is

        p dL/drow + q dL/dcolumn, and of a positive pair dL/drow_positive + dL/dcolumn_positive besides.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, x_group: Tensor, y: Tensor, y_group: Tensor) -> Tensors:
        every, positive = x.new_full((len(x),), -torch.inf), x.new_zeros(len(x))

        def visit(block: Tensors) -> Tensors:
            y, y_group = block
            of_rows, of_columns = log_sum_exps(x, y)
            torch.logaddexp(every, of_rows, out=every)
            match = _Matching(x_group, y_group)
            positive.add_(torch.linalg.vecdot(x, match.sums_for_x(y)))
            return of_columns, torch.linalg.vecdot(y, match.sums_for_y(x))

        def merge(one: Tensors, other: Tensors) -> Tensors:
            return torch.logaddexp(one[0], other[0]), one[1] + other[1]

        every_y, positive_y = travel((y, y_group), visit, merge)
        ctx.save_for_backward(x, x_group, every, y, y_group, every_y)
        return every, positive, every_y, positive_y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *sums: Tensor) -> tuple[Tensor | None, ...]:
        x, x_group, every, y, y_group, every_y = ctx.saved_tensors
        by_row, by_positive = sums[:2]
        of_x = torch.zeros_like(x)

        def visit(block: Tensors) -> Tensors:
            y, y_group, every_y, by_column, by_positive_y = block

            def of_logits(tile: Tile) -> Tensor:
                rows, columns, logits = tile
                of_row: Tensor = (logits - every[rows, None]).exp_().mul_(by_row[rows, None])
                of_column = logits.sub_(every_y[columns]).exp_()
                return of_row.addcmul_(of_column, by_column[columns])

            here_x, here_y = gradients(x, y, of_logits)
            match = _Matching(x_group, y_group)
            here_x.addcmul_(match.sums_for_x(y), by_positive[:, None])
            here_x.add_(match.sums_for_x(y * by_positive_y[:, None]))
            here_y.addcmul_(match.sums_for_y(x), by_positive_y[:, None])
            here_y.add_(match.sums_for_y(x * by_positive[:, None]))
            of_x.add_(here_x)
            return (here_y,)

        block = (y, y_group, every_y, sums[2], sums[3])
        (of_y,) = travel(block, visit, lambda one, other: (one[0] + other[0],))
        return of_x, None, of_y, None


class _Sigmoid(torch.autograd.Function):
    """The function of :func:`sigmoid_sums`. The gradient of a logit is sigmoid(logit) dL/drow.

    Positive pairs as for the softmax.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, x_group: Tensor, y: Tensor, y_group: Tensor) -> Tensors:
        every, positive = x.new_zeros(len(x)), x.new_zeros(len(x))

        def visit(block: Tensors) -> Tensors:
            y, y_group = block
            every.add_(softplus_sums(x, y))
            positive.add_(torch.linalg.vecdot(x, _Matching(x_group, y_group).sums_for_x(y)))
            return ()

        travel((y, y_group), visit, lambda one, _: one)
        ctx.save_for_backward(x, x_group, y, y_group)
        return every, positive

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *sums: Tensor) -> tuple[Tensor | None, ...]:
        x, x_group, y, y_group = ctx.saved_tensors
        by_row, by_positive = sums
        of_x = torch.zeros_like(x)

        def of_logits(tile: Tile) -> Tensor:
            return tile.logits.sigmoid_().mul_(by_row[tile.rows, None])

        def visit(block: Tensors) -> Tensors:
            y, y_group = block
            here_x, here_y = gradients(x, y, of_logits)
            match = _Matching(x_group, y_group)
            here_x.addcmul_(match.sums_for_x(y), by_positive[:, None])
            here_y.add_(match.sums_for_y(x * by_positive[:, None]))
            of_x.add_(here_x)
            return (here_y,)

        (of_y,) = travel((y, y_group), visit, lambda one, other: (one[0] + other[0],))
        return of_x, None, of_y, None
