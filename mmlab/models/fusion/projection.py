"""Each modality projected into one space, and nothing more: tokens side by side."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from mmlab.batch import Modality
from mmlab.models.encoders.encoder import Encoded
from mmlab.models.fusion.fusion import Fusion
from mmlab.models.fusion.shared_space import SharedSpace, never_empty, put_together


class ProjectionFusion(Fusion):
    """All tokens of all modalities, projected (:class:`SharedSpace`): none looks at another.

    With a head that takes the mean it is late fusion of features; before another model it is its input.
    """

    def __init__(self, dims: dict[str, int], *, dim: int, dropout: float = 0.0) -> None:
        """Make the projections.

        Args:
            dims: Size of the tokens of each modality, by its name.
            dim: Size of the result.
            dropout: Probability on the result.
        """
        super().__init__(dims, dim=dim)
        self.space = SharedSpace(self.dims, dim=dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, encoded: Mapping[Modality, Encoded]) -> Encoded:
        """Project the tokens of every sample."""
        tokens, mask = never_empty(put_together(self.space(encoded)))
        return Encoded(self.dropout(tokens), mask)
