"""A transformer over the tokens of all modalities."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from mmlab.batch import Modality
from mmlab.models.encoders.encoder import Encoded
from mmlab.models.encoders.transformer_layer import TransformerLayer
from mmlab.models.fusion.fusion import Fusion, check_heads, check_layers
from mmlab.models.fusion.shared_space import SharedSpace, put_together


class TransformerFusion(Fusion):
    """Every token sees every other, of whatever modality, and a summary token sees all of them.

    The tokens are projected (:class:`SharedSpace`), then transformer layers run over [summary; all tokens]
    (single-stream fusion: VisualBERT, Li et al. 2019, arXiv:1908.03557). The first token of the result is the
    summary: `FirstTokenPooling` reads it, the mean takes all.
    """

    def __init__(
        self, dims: dict[str, int], *, dim: int, num_layers: int = 2, num_heads: int = 4, dropout: float = 0.0
    ) -> None:
        """Make the layers.

        Args:
            dims: Size of the tokens of each modality, by its name.
            dim: Size of the result.
            num_layers: Transformer layers.
            num_heads: Attention heads; they divide `dim`.
            dropout: Probability in the layers.

        Raises:
            ValueError: `num_heads` does not divide `dim`; no layer.
        """
        super().__init__(dims, dim=dim)
        check_heads(dim, num_heads)
        check_layers(num_layers)
        self.space = SharedSpace(self.dims, dim=dim)
        self.summary = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.layers = nn.ModuleList(
            TransformerLayer(dim, num_heads=num_heads, hidden=4 * dim, dropout=dropout)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, encoded: Mapping[Modality, Encoded]) -> Encoded:
        """Fuse the modalities of every sample."""
        tokens, mask = put_together(self.space(encoded))
        tokens = torch.cat([self.summary.expand(len(tokens), -1, -1), tokens], dim=1)
        mask = torch.cat([mask.new_ones(len(mask), 1), mask], dim=1)
        for layer in self.layers:
            tokens = layer(tokens, mask[:, None, None, :])
        return Encoded(self.norm(tokens), mask)

    def tokens_of(self, modality: Modality, encoded: Mapping[Modality, Encoded], fused: Encoded) -> Encoded:
        """The tokens of one modality in what became of all of them.

        Args:
            modality: One of those that were fused.
            encoded: What was fused.
            fused: What came of it.
        """
        before = list(self.dims)[: list(self.dims).index(modality)]
        start = 1 + sum(encoded[other].tokens.shape[1] for other in before)
        chosen = slice(start, start + encoded[modality].tokens.shape[1])
        return Encoded(fused.tokens[:, chosen], fused.mask[:, chosen])
