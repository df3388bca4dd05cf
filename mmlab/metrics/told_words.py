"""How well words are told: hidden ones from the rest, or each from those before it."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from mmlab import collectives


@runtime_checkable
class WordLogits(Protocol):
    """What a model thinks of words that it is to tell."""

    @property
    def logits(self) -> Float[Tensor, "targets vocabulary"]:
        """Of each word."""

    @property
    def token(self) -> Int64[Tensor, " targets"]:
        """The right one."""

    @property
    def place(self) -> Int64[Tensor, " targets"]:
        """Place of the sample that it belongs to."""


class ToldWordScores:
    """`accuracy`, the share of words that are told right, and `loss`, the mean of -log p of the right one.

    `compute` gathers the words of all ranks and sorts them by place.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._told: list[Tensor] = []

    def reset(self) -> None:
        """Start anew."""
        self._told = []

    def update(self, told: WordLogits) -> None:
        """Keep how well the words of a batch are told."""
        logits = told.logits.detach().float()
        loss = F.cross_entropy(logits, told.token, reduction="none")
        right = logits.argmax(dim=1) == told.token
        # A place above 2^53 would be rounded: there are no data sets of that size.
        self._told.append(torch.stack([told.place.double(), right.double(), loss.double()], dim=1).cpu())

    def compute(self) -> dict[str, float]:
        """Both; nothing where there was no word. Every rank must call it."""
        own = torch.cat(self._told) if self._told else torch.zeros(0, 3, dtype=torch.float64)
        rows = collectives.gather_rows(own)
        if len(rows) == 0:
            return {}
        rows = rows[rows[:, 0].argsort(stable=True)]
        return {"accuracy": float(rows[:, 1].mean()), "loss": float(rows[:, 2].mean())}
