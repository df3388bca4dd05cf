"""From the tokens of a row to one vector."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmlab.models.encoders.encoder import Encoded


class Pooling(nn.Module, ABC):
    """Turns the valid tokens of each row into one vector."""

    dim: int | None = None
    """The size of tokens that it is made for; None: any."""
    parts: int = 1
    """The vector's size, in token sizes."""

    @abstractmethod
    def forward(self, encoded: Encoded) -> Float[Tensor, "rows dim"]:
        """Pool every row."""


class MeanPooling(Pooling):
    """The mean of the valid tokens, in float32."""

    def forward(self, encoded: Encoded) -> Float[Tensor, "rows dim"]:
        """Pool every row."""
        valid = encoded.mask[:, :, None]
        tokens = encoded.tokens.float().masked_fill(~valid, 0)
        return tokens.sum(dim=1) / valid.sum(dim=1)


class StatisticsPooling(Pooling):
    """The mean and the deviation of the valid tokens (x-vectors: Snyder et al. 2018, section 2.1)."""

    parts = 2

    def forward(self, encoded: Encoded) -> Float[Tensor, "rows parts_dim"]:
        """Pool every row."""
        valid = encoded.mask[:, :, None]
        tokens = encoded.tokens.float().masked_fill(~valid, 0)
        count = valid.sum(dim=1)
        mean = tokens.sum(dim=1) / count
        spread = (tokens - mean[:, None]).masked_fill(~valid, 0).square().sum(dim=1) / count
        # The root of zero has no derivative.
        return torch.cat([mean, (spread + 1e-8).sqrt()], dim=1)


class FirstTokenPooling(Pooling):
    """The first valid token: the class token of BERT and of most ViTs."""

    def forward(self, encoded: Encoded) -> Float[Tensor, "rows dim"]:
        """Pool every row."""
        # Behind a fusion, the tokens of a modality that a sample lacks may stand before.
        first = encoded.mask.int().argmax(dim=1)
        return encoded.tokens[torch.arange(len(first), device=first.device), first]


class LastTokenPooling(Pooling):
    """The last valid token, the only one that a decoder-only language model lets see the whole row."""

    def forward(self, encoded: Encoded) -> Float[Tensor, "rows dim"]:
        """Pool every row."""
        steps = torch.arange(encoded.mask.shape[1], device=encoded.mask.device)
        last = (steps * encoded.mask).argmax(dim=1)
        return encoded.tokens[torch.arange(len(last), device=last.device), last]


class AttentivePooling(Pooling):
    """A mean weighted by softmax(tokens . query / sqrt(dim)) with a learned query; it starts as the mean."""

    def __init__(self, dim: int) -> None:
        """Make the query for tokens of size `dim`."""
        super().__init__()
        self.dim = dim
        self.query = nn.Parameter(torch.zeros(dim))

    def forward(self, encoded: Encoded) -> Float[Tensor, "rows dim"]:
        """Pool every row."""
        valid = encoded.mask[:, :, None]
        tokens = encoded.tokens.float().masked_fill(~valid, 0)
        score = (tokens @ self.query.float())[:, :, None] / math.sqrt(len(self.query))
        weight = score.masked_fill(~valid, -torch.inf).softmax(dim=1)
        return (weight * tokens).sum(dim=1)


class SegmentPooling(Pooling):
    """The means of equal stretches of the valid tokens, one after the other.

    What comes first and what comes last stay apart, as the words of a spoken sentence must. Stretches are
    those of adaptive average pooling: number s of n covers the tokens floor(s T / n) to ceil((s + 1) T / n).
    """

    def __init__(self, segments: int = 4) -> None:
        """Set the number of stretches.

        Raises:
            ValueError: It is not positive.
        """
        super().__init__()
        if segments < 1:
            raise ValueError(f"segments={segments}: it must be at least 1")
        self.parts = segments

    def forward(self, encoded: Encoded) -> Float[Tensor, "rows parts_dim"]:
        """Pool every row."""
        order = encoded.mask.long().cumsum(dim=1)[:, None, :] - 1
        count = encoded.mask.sum(dim=1)[:, None, None]
        segment = torch.arange(self.parts, device=count.device)[None, :, None]
        start = segment * count // self.parts
        stop = ((segment + 1) * count + self.parts - 1) // self.parts
        inside = (order >= start) & (order < stop) & encoded.mask[:, None, :]
        tokens = encoded.tokens.float().masked_fill(~encoded.mask[:, :, None], 0)
        means = inside.float() @ tokens / inside.sum(dim=2, keepdim=True)
        return means.flatten(1)
