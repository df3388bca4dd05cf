"""Low-rank bilinear pooling: the product of what each modality says."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce

import torch
from torch import nn

from mmlab.batch import Modality
from mmlab.models.encoders.encoder import Encoded
from mmlab.models.fusion.fusion import Fusion, has_tokens, mean_token


class ProductFusion(Fusion):
    """One token for each sample: the elementwise product over the modalities that it has.

    z = prod_m tanh(W_m norm(x_m) + b_m), where x_m is the mean of the modality's tokens. With a linear layer
    behind it this is a bilinear form of low rank, the rank being `dim` (MLB: Kim et al. 2017,
    arXiv:1610.04325, there of two modalities and without the norm). A modality that a sample lacks counts as
    a factor of 1: what it has is fused as if there were no other.
    """

    def __init__(self, dims: dict[str, int], *, dim: int, dropout: float = 0.0) -> None:
        """Make the projections.

        Args:
            dims: Size of the tokens of each modality, by its name.
            dim: Size of the product, the rank of the bilinear form.
            dropout: Probability on the product.
        """
        super().__init__(dims, dim=dim)
        self.factors = nn.ModuleDict(
            {
                modality.value: nn.Sequential(nn.LayerNorm(size), nn.Linear(size, dim), nn.Tanh())
                for modality, size in self.dims.items()
            }
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, encoded: Mapping[Modality, Encoded]) -> Encoded:
        """Fuse the modalities of every sample."""
        factors = []
        for modality in self.dims:
            factor = self.factors[modality.value](mean_token(encoded[modality]))
            factors.append(torch.where(has_tokens(encoded[modality]), factor, 1.0))
        product = self.dropout(reduce(torch.mul, factors))
        return Encoded(product[:, None], torch.ones_like(product[:, :1], dtype=torch.bool))
