"""How often training has seen each of many items."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from mmlab import collectives
from mmlab.batch import NOBODY
from mmlab.models.network import FollowsSteps


class Popularity(nn.Module, FollowsSteps):
    """Counts items over the steps of training and over all ranks; within a step the counts do not change.

    It starts with every item once, so the share of one that was never seen is not zero.
    """

    count: Int64[Tensor, " items"]

    def __init__(self, items: int) -> None:
        """Start to count.

        Args:
            items: How many there are.
        """
        super().__init__()
        self.register_buffer("count", torch.ones(items, dtype=torch.int64))
        # No buffer: DDP would put rank 0's in its place before this step has been added up.
        self._new: Tensor | None = None

    @property
    def had(self) -> Bool[Tensor, " items"]:
        """Which items training has had."""
        return self.count > 1

    def forward(self, item: Int64[Tensor, " rows"]) -> Float[Tensor, " rows"]:
        """Log of the share of training samples that have the item.

        Args:
            item: Numbers, or :data:`~mmlab.batch.NOBODY`, which gives anything.
        """
        share = (self.count.double() / self.count.sum()).log().float()
        return share[item.clamp(min=0)]

    def see(self, item: Int64[Tensor, "..."]) -> None:
        """Count the items of a training batch; not in `forward`, which a backward pass may run again.

        Args:
            item: Numbers, or NOBODY, in any shape.
        """
        new = torch.bincount(item[item != NOBODY], minlength=len(self.count))
        self._new = new if self._new is None else self._new + new

    @torch.no_grad()
    def after_step(self) -> None:
        """Add what this step has seen, on every rank."""
        new = torch.zeros_like(self.count) if self._new is None else self._new
        self.count += collectives.total(new)
        self._new = None
