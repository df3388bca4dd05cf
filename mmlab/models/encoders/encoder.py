"""What every encoder is: rows of one modality in, token features and their mask out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor, nn

from mmlab.batch import Input, Modality


class Encoded(NamedTuple):
    """Token features of the rows of one input."""

    tokens: Float[Tensor, "rows tokens dim"]
    mask: Bool[Tensor, "rows tokens"]
    """True at tokens that stand for something; each row has at least one."""


class Encoder(nn.Module, ABC):
    """Turns the rows of one modality into token features.

    The rows of absent samples are encoded too (see :class:`mmlab.batch.Input`); whoever reads the result
    leaves them out by `Input.owner`.
    """

    modality: Modality
    dim: int
    """Size of a token's features."""

    @abstractmethod
    def forward(self, inputs: Input) -> Encoded:
        """Encode every row."""
