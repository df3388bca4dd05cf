"""A loss together with what each sample adds to it, so that a mixture's loss can be told by source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mmlab import collectives
from mmlab.batch import NOBODY, Batch


class Share(NamedTuple):
    """What this rank's rows add to one mean of a loss, without gradient.

    Over the rows of all ranks, the mean is sum(loss) / sum(weight). Rows that take no part have 0 in both.
    """

    loss: Float[Tensor, " rows"]
    weight: Float[Tensor, " rows"]
    place: Int64[Tensor, " rows"]
    """Place of the sample that the row belongs to."""


class Loss(NamedTuple):
    """A scalar to minimise, and whose it is."""

    value: Float[Tensor, ""]
    """Its mean over ranks is the loss of the global batch, which is the mean over `shares` of theirs."""
    shares: tuple[Share, ...] = ()
    """Empty: what a sample adds is not known."""

    def times(self, weight: float) -> Loss:
        """The same loss, counting so many times."""
        return Loss(
            weight * self.value, tuple(share._replace(loss=weight * share.loss) for share in self.shares)
        )


def mean_of(
    losses: Float[Tensor, " samples"],
    weight: Float[Tensor, " samples"],
    place: Int64[Tensor, " samples"],
) -> Loss:
    """Sum of losses over sum of weights in the global batch; 0 where no sample of any rank has weight.

    Every rank must call it.

    Args:
        losses: What this rank's samples add, 0 where one takes no part.
        weight: What each counts for.
        place: Of each sample.
    """
    total = collectives.total(weight.sum())
    # Ranks have samples of different weight; the mean of what they return is the mean over all of them.
    share = torch.where(total > 0, total, 1.0) / collectives.world_size()
    return Loss(losses.sum() / share, (Share(losses.detach(), weight, place),))


def losses_by_source(losses: Mapping[str, Loss], batch: Batch) -> dict[str, float]:
    """The losses of each source of a mixture in a global batch; every rank must call it.

    The loss of a source is the same formula over the rows of its samples alone: an anchor of the source is
    still compared with the whole batch. Of several shares, those count in which the source has rows. A loss
    without shares is known for a source only where the whole global batch is of that source.

    Args:
        losses: The same names on every rank.
        batch: What they are of; names several sources.

    Returns:
        For each source with samples in the global batch `loss@source`, the sum of the losses that it takes
        part in, and of several losses each as `loss/name@source`. What is not known is left out.
    """
    assert batch.source is not None, "a batch that names sources says which sample is from which"
    nobody = len(batch.sources)
    source = torch.where(batch.source == NOBODY, nobody, batch.source)
    order = batch.place.argsort()
    tables: list[Tensor] = []
    for loss in losses.values():
        for share in loss.shares:
            sample = order[torch.searchsorted(batch.place[order], share.place).clamp(max=len(order) - 1)]
            tables.append(_sums(share.loss, share.weight, source[sample], nobody))
        if not loss.shares:
            only = torch.where((source == source[0]).all(), source[:1], nobody)
            tables.append(_sums(loss.value[None], torch.ones_like(loss.value[None]), only, nobody))
    # One collective, and one wait for the device.
    sums: list[list[list[float]]] = collectives.total(torch.stack(tables)).tolist()

    values: dict[str, float] = {}
    for number, name in enumerate(batch.sources):
        parts: dict[str, float] = {}
        complete, rest = True, iter(sums)
        for part, loss in losses.items():
            drawn = [next(rest) for _ in loss.shares or [None]]
            least = 0 if loss.shares else collectives.world_size() - 1
            means = [total[number] / weight[number] for total, weight in drawn if weight[number] > least]
            if means:
                parts[part] = sum(means) / len(means)
            complete = complete and (len(means) > 0 or len(loss.shares) > 0)
        if parts and complete:
            values[f"loss@{name}"] = sum(parts.values())
        if len(losses) > 1:
            values |= {f"loss/{part}@{name}": value for part, value in parts.items()}
    return values


def _sums(
    loss: Float[Tensor, " rows"], weight: Float[Tensor, " rows"], source: Int64[Tensor, " rows"], nobody: int
) -> Float[Tensor, "2 sources"]:
    """Sums of losses and of weights by source; the last column is nobody's."""
    rows = torch.stack([loss.detach().float(), weight.float()])
    return rows.new_zeros(2, nobody + 1).index_add_(1, source, rows)
