"""Losses of what a language model is to say."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mmlab import collectives
from mmlab.objectives.loss import Loss, Share


@runtime_checkable
class SaidTokens(Protocol):
    """What a language model thinks of the tokens that it is to say."""

    @property
    def logits(self) -> Float[Tensor, "targets vocabulary"]:
        """Of each target."""

    @property
    def token(self) -> Int64[Tensor, " targets"]:
        """The token to be said."""

    @property
    def place(self) -> Int64[Tensor, " targets"]:
        """Place of the sample that it belongs to."""


def token_cross_entropy(
    logits: Float[Tensor, "targets vocabulary"],
    token: Int64[Tensor, " targets"],
    *,
    label_smoothing: float = 0.0,
) -> Float[Tensor, " targets"]:
    """-log p(token), in float32; smoothed towards the uniform distribution (Szegedy et al. 2016)."""
    return F.cross_entropy(logits.float(), token, reduction="none", label_smoothing=label_smoothing)


class TokenCrossEntropy(nn.Module):
    """Mean over all target tokens of the global batch."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        """Take the settings.

        Args:
            label_smoothing: Share of probability that is spread over the whole vocabulary.

        Raises:
            ValueError: It is not in [0, 1).
        """
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing}: it must be at least 0 and below 1")
        self.label_smoothing = label_smoothing

    def forward(self, said: SaidTokens) -> Loss:
        """The loss; 0 where no rank has a target. Every rank must call it."""
        losses = token_cross_entropy(said.logits, said.token, label_smoothing=self.label_smoothing)
        count = torch.tensor(float(len(losses)), device=losses.device)
        # Ranks have different numbers of targets; the mean of what they return is the mean over all targets.
        share = collectives.total(count).clamp(min=1) / collectives.world_size()
        return Loss(
            losses.sum() / share, (Share(losses.detach(), torch.ones_like(losses.detach()), said.place),)
        )
