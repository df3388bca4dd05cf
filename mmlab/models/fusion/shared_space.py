"""Tokens of several modalities in one space."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from mmlab.batch import Modality
from mmlab.models.encoders.encoder import Encoded


class SharedSpace(nn.Module):
    """Projects the tokens of each modality: y = W_m norm(x) + b_m + e_m, where e_m says which one it is."""

    def __init__(self, dims: Mapping[Modality, int], *, dim: int) -> None:
        """Make the layers.

        Args:
            dims: Size of the tokens of each modality.
            dim: Of the space.
        """
        super().__init__()
        self.layers = nn.ModuleDict(
            {m.value: nn.Sequential(nn.LayerNorm(size), nn.Linear(size, dim)) for m, size in dims.items()}
        )
        self.kinds = nn.ParameterDict({m.value: torch.randn(dim) * 0.02 for m in dims})

    def forward(self, encoded: Mapping[Modality, Encoded]) -> dict[Modality, Encoded]:
        """Project every token, in the order of the modalities; what stands behind a mask stays behind it."""
        found = {}
        for name, layer in self.layers.items():
            modality = Modality(name)
            tokens, mask = encoded[modality]
            tokens = layer(tokens.float().masked_fill(~mask[:, :, None], 0)) + self.kinds[name]
            found[modality] = Encoded(tokens.masked_fill(~mask[:, :, None], 0), mask)
        return found


def put_together(parts: Mapping[Modality, Encoded]) -> Encoded:
    """The tokens of all modalities of each sample, one after the other."""
    return Encoded(
        torch.cat([part.tokens for part in parts.values()], dim=1),
        torch.cat([part.mask for part in parts.values()], dim=1),
    )


def never_empty(encoded: Encoded) -> Encoded:
    """The same, but that a sample without any token has one of zeros."""
    empty = ~encoded.mask.any(dim=1)
    first = torch.zeros_like(encoded.mask)
    first[:, 0] = empty
    return Encoded(encoded.tokens.masked_fill(~encoded.mask[:, :, None], 0), encoded.mask | first)
