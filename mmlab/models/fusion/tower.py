"""What brings the rows of one modality to a fusion: one token for each sample that has any."""

from __future__ import annotations

from torch import nn

from mmlab.batch import NOBODY, Input
from mmlab.models.encoders.encoder import Encoded, Encoder
from mmlab.models.pooling import MeanPooling, Pooling


class FusionTower(nn.Module):
    """Encoder and pooling, and from rows to samples.

    Of several rows of one sample it takes the mean: two pictures count as much as one.
    """

    def __init__(self, encoder: Encoder, *, pooling: Pooling | None = None) -> None:
        """Put the parts together.

        Args:
            encoder: Gives the tokens of a row.
            pooling: Makes one vector of a row's tokens; None takes their mean.

        Raises:
            ValueError: A pooling made for tokens of another size.
        """
        super().__init__()
        pooling = MeanPooling() if pooling is None else pooling
        if pooling.dim is not None and pooling.dim != encoder.dim:
            raise ValueError(
                f"{type(pooling).__name__} is made for tokens of size {pooling.dim}, but "
                f"{type(encoder).__name__} gives {encoder.dim}: set its dim to {encoder.dim}"
            )
        self.encoder = encoder
        self.pooling = pooling
        self.dim = encoder.dim * pooling.parts

    def forward(self, inputs: Input) -> Encoded:
        """One token for each sample, float32; none where it owns no row."""
        vector = self.pooling(self.encoder(inputs)).float()
        owned = inputs.owner != NOBODY
        owner = inputs.owner.clamp(min=0)
        samples = len(inputs.present)
        # Rows of nobody are added too, as zeros: the encoder has a gradient where no sample owns a row.
        total = vector.new_zeros(samples, self.dim)
        total = total.index_add(0, owner, vector.masked_fill(~owned[:, None], 0))
        rows = vector.new_zeros(samples).index_add(0, owner, owned.to(vector))
        mean = total / rows.clamp(min=1)[:, None]
        return Encoded(mean[:, None], inputs.present[:, None])
