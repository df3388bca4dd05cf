"""A text that looks at the picture of its sample, through a gate."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmlab.batch import NOBODY, Batch, Input, Modality
from mmlab.models.encoders.encoder import Encoded, Encoder, input_of
from mmlab.models.encoders.transformer_layer import TransformerLayer
from mmlab.models.fusion.shared_space import never_empty
from mmlab.models.fusion.tower import FusionTower


class GatedLook(nn.Module):
    """Attention from every token of a text to the tokens of its picture, added through a gate.

    The gate is closed at the start: x + tanh(g) (layer(x, picture) - x), as Flamingo's (arXiv:2204.14198,
    section 2.2). A text without a picture stays as it is.
    """

    def __init__(self, dim: int, *, image_dim: int, num_heads: int, dropout: float = 0.0) -> None:
        """Make the layers.

        Args:
            dim: Size of the text's tokens.
            image_dim: Size of the picture's.
            num_heads: Attention heads.
            dropout: Inside the layer.
        """
        super().__init__()
        self.project = nn.Sequential(nn.LayerNorm(image_dim), nn.Linear(image_dim, dim))
        self.layer = TransformerLayer(dim, num_heads=num_heads, hidden=2 * dim, dropout=dropout)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(
        self, tokens: Float[Tensor, "rows tokens dim"], text: Input, picture: Encoded
    ) -> Float[Tensor, "rows tokens dim"]:
        """Look.

        Args:
            tokens: Of the text.
            text: Whose rows they are.
            picture: Tokens of each sample's pictures, none where it has none.
        """
        seen = never_empty(picture._replace(tokens=self.project(picture.tokens)))
        owner = text.owner.clamp(min=0)
        looked = self.layer(tokens, seen.mask[owner][:, None, None, :], context=seen.tokens[owner])
        there = picture.mask.any(dim=1)[owner] & (text.owner != NOBODY)
        added: Tensor = (torch.tanh(self.gate) * (looked - tokens)).masked_fill(~there[:, None, None], 0)
        return tokens + added


def picture_of(batch: Batch, tower: FusionTower) -> Encoded:
    """Tokens of the pictures of each sample.

    Raises:
        ValueError: The run reads no pictures.
    """
    seen: Encoded = tower(input_of(batch, Modality.IMAGE))
    return seen


def check_modalities(text: Encoder, image: FusionTower | None) -> None:
    """Raise ValueError where an encoder is of another modality than its place."""
    for name, encoder in (("text", text), ("image", None if image is None else image.encoder)):
        if encoder is not None and encoder.modality != name:
            raise ValueError(
                f"{name} has {type(encoder).__name__}, an encoder of {encoder.modality}: give one of {name}"
            )
