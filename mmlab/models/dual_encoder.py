"""Towers that bring any set of modalities into one space of unit vectors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mmlab.batch import NOBODY, Batch, Embeddings, Input, Modality
from mmlab.models.encoders.encoder import Encoded, Encoder, input_of
from mmlab.models.pooling import MeanPooling, Pooling


class Tower(nn.Module):
    """Encoder, pooling, projection: one unit vector per row."""

    def __init__(
        self,
        encoder: Encoder,
        *,
        dim: int,
        pooling: Pooling | None = None,
        hidden: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        """Put the parts together.

        Args:
            encoder: Gives the tokens of a row.
            dim: Size of the shared space.
            pooling: Makes one vector of a row's tokens; None takes their mean.
            hidden: Width of the projection's hidden layer; None projects linearly.
            dropout: Probability on what the last linear layer reads.

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
        self.dim = dim
        width = encoder.dim * pooling.parts
        layers: list[nn.Module] = [nn.LayerNorm(width)]
        if hidden is not None:
            layers += [nn.Linear(width, hidden), nn.GELU()]
        layers += [nn.Dropout(dropout), nn.Linear(width if hidden is None else hidden, dim)]
        self.projection = nn.Sequential(*layers)

    def forward(self, inputs: Input) -> Float[Tensor, "rows dim"]:
        """Embed every row, float32."""
        return self.embed(self.encoder(inputs))

    def embed(self, encoded: Encoded) -> Float[Tensor, "rows dim"]:
        """Embed what the encoder gave of every row, float32."""
        vector = self.projection(self.pooling(encoded))
        return F.normalize(vector.float(), dim=-1)


class DualEncoderOutput(NamedTuple):
    """The vectors of each modality; None where the model has no tower for it."""

    image: Embeddings | None
    text: Embeddings | None
    audio: Embeddings | None
    signal: Embeddings | None

    def get(self, modality: Modality) -> Embeddings:
        """The vectors of a modality.

        Raises:
            ValueError: The model has no tower for it.
        """
        value: Embeddings | None = getattr(self, modality.value)
        if value is None:
            raise ValueError(f"the model has no tower for {modality}")
        return value


class Towers(nn.Module):
    """One tower per modality, into one space."""

    def __init__(
        self,
        *,
        image: Tower | None = None,
        text: Tower | None = None,
        audio: Tower | None = None,
        signal: Tower | None = None,
    ) -> None:
        """Take the towers, at least one.

        Raises:
            ValueError: No tower, an encoder of another modality, or towers of different `dim`.
        """
        super().__init__()
        self.image = image
        self.text = text
        self.audio = audio
        self.signal = signal
        dims = {}
        for modality, tower in self.towers():
            dims[modality.value] = tower.dim
            if tower.encoder.modality != modality:
                raise ValueError(
                    f"the {modality} tower has {type(tower.encoder).__name__}, an encoder of "
                    f"{tower.encoder.modality}: move it to that tower"
                )
        if len(dims) == 0:
            raise ValueError(f"no tower: give at least one of {', '.join(Modality)}")
        if len(set(dims.values())) > 1:
            raise ValueError(f"towers of one model share one space, but their dim differs: {dims}")
        self.dim = next(iter(dims.values()))

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Those that the model has a tower for."""
        return tuple(modality for modality, _ in self.towers())

    def towers(self) -> Iterator[tuple[Modality, Tower]]:
        """The towers that this model has."""
        for modality in Modality:
            tower = getattr(self, modality.value)
            if tower is not None:
                yield modality, tower


class DualEncoder(Towers):
    """One tower per modality, none of which sees another's input (CLIP: Radford et al. 2021)."""

    def forward(self, batch: Batch) -> DualEncoderOutput:
        """Run every tower once, whatever the batch lacks.

        Raises:
            ValueError: The run does not read a modality that the model has a tower for.
        """
        found: dict[str, Embeddings | None] = {modality.value: None for modality in Modality}
        for modality, tower in self.towers():
            inputs = input_of(batch, modality)
            found[modality.value] = embeddings(tower(inputs), inputs, batch)
        return DualEncoderOutput(**found)


def embeddings(vector: Tensor, inputs: Input, batch: Batch) -> Embeddings:
    """Say for each row which sample it stands for; a row of nobody, or not valid, is compared to nothing."""
    owned = inputs.owner != NOBODY
    sample = inputs.owner.clamp(min=0)
    nobody = torch.full_like(inputs.owner, NOBODY)
    group = torch.where(owned & batch.valid[sample], batch.group[sample], nobody)
    return Embeddings(vector, group, torch.where(owned, batch.place[sample], nobody))
