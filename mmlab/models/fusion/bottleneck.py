"""Modalities that meet in a few tokens only."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from mmlab.batch import Modality
from mmlab.models.encoders.encoder import Encoded
from mmlab.models.encoders.transformer_layer import TransformerLayer
from mmlab.models.fusion.fusion import Fusion, check_heads, has_tokens
from mmlab.models.fusion.shared_space import SharedSpace


class BottleneckFusion(Fusion):
    """Bottleneck tokens carry all that one modality learns of another (MBT: Nagrani et al. 2021).

    In each layer every modality runs its own transformer layer over [x_m; b]; the bottleneck b of the next
    layer is the mean of those that come out, over the modalities that a sample has (arXiv:2107.00135, eq. 8
    and 9). The result is b; the paper reads a class token of each modality instead.
    """

    def __init__(
        self,
        dims: dict[str, int],
        *,
        dim: int,
        bottlenecks: int = 4,
        num_layers: int = 2,
        num_heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        """Make the layers.

        Args:
            dims: Size of the tokens of each modality, by its name.
            dim: Size of the result.
            bottlenecks: Tokens in which the modalities meet.
            num_layers: Transformer layers of each modality.
            num_heads: Attention heads; they divide `dim`.
            dropout: Probability in the layers.

        Raises:
            ValueError: `num_heads` does not divide `dim`; no layer or no bottleneck.
        """
        super().__init__(dims, dim=dim)
        check_heads(dim, num_heads)
        if min(num_layers, bottlenecks) < 1:
            raise ValueError(f"num_layers={num_layers}, bottlenecks={bottlenecks}: each must be 1 at least")
        self.space = SharedSpace(self.dims, dim=dim)
        self.bottleneck = nn.Parameter(torch.randn(1, bottlenecks, dim) * 0.02)
        self.layers = nn.ModuleDict(
            {
                modality.value: nn.ModuleList(
                    TransformerLayer(dim, num_heads=num_heads, hidden=4 * dim, dropout=dropout)
                    for _ in range(num_layers)
                )
                for modality in self.dims
            }
        )
        self.num_layers = num_layers
        self.norm = nn.LayerNorm(dim)

    def forward(self, encoded: Mapping[Modality, Encoded]) -> Encoded:
        """Fuse the modalities of every sample."""
        parts = self.space(encoded)
        own = {modality: part.tokens for modality, part in parts.items()}
        present = torch.stack([has_tokens(parts[m]) for m in self.dims]).unsqueeze(2)
        count = present.sum(dim=0)
        bottleneck = self.bottleneck.expand(present.shape[1], -1, -1)
        size = bottleneck.shape[1]
        for number in range(self.num_layers):
            carried = []
            for modality, tokens in own.items():
                mask = torch.cat([parts[modality].mask, parts[modality].mask.new_ones(len(tokens), size)], 1)
                layer = self.layers[modality.value][number]  # type: ignore[index]
                both = layer(torch.cat([tokens, bottleneck], dim=1), mask[:, None, None, :])
                own[modality] = both[:, :-size]
                carried.append(both[:, -size:])
            mean = torch.stack(carried).masked_fill(~present, 0).sum(dim=0) / count.clamp(min=1)
            bottleneck = torch.where(count > 0, mean, bottleneck)
        return Encoded(self.norm(bottleneck), bottleneck.new_ones(bottleneck.shape[:2], dtype=torch.bool))
