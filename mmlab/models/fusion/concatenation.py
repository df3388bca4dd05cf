"""What each modality says, side by side."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmlab.batch import Modality
from mmlab.models.encoders.encoder import Encoded
from mmlab.models.fusion.fusion import Fusion, has_tokens, mean_token


class ConcatenationFusion(Fusion):
    """One token for each sample: a layer over the means of all modalities side by side.

    z = gelu(W [x_1; x_2; ...] + b), where x_m is the norm of the mean of the modality's tokens. In the place
    of a modality that a sample lacks stands a learned vector, zeros at the start.
    """

    def __init__(self, dims: dict[str, int], *, dim: int, dropout: float = 0.0) -> None:
        """Make the layers.

        Args:
            dims: Size of the tokens of each modality, by its name.
            dim: Size of the result.
            dropout: Probability on the result.
        """
        super().__init__(dims, dim=dim)
        self.norms = nn.ModuleDict({modality.value: nn.LayerNorm(n) for modality, n in self.dims.items()})
        self.missing = nn.ParameterDict({modality.value: torch.zeros(n) for modality, n in self.dims.items()})
        self.layer = nn.Sequential(nn.Linear(sum(self.dims.values()), dim), nn.GELU(), nn.Dropout(dropout))

    def forward(self, encoded: Mapping[Modality, Encoded]) -> Encoded:
        """Fuse the modalities of every sample."""
        parts = []
        for modality in self.dims:
            part = self.norms[modality.value](self.steps(encoded[modality]))
            present = has_tokens(encoded[modality])[:, :, None]
            parts.append(torch.where(present, part, self.missing[modality.value]))
        fused = self.layer(torch.cat(parts, dim=2))
        return Encoded(fused, torch.ones_like(fused[:, :, 0], dtype=torch.bool))

    def steps(self, encoded: Encoded) -> Float[Tensor, "samples steps dim"]:
        """What of a modality is fused, as many steps of each: here one, the mean."""
        return mean_token(encoded)[:, None]
