"""What every encoder is: rows of one modality in, token features and their mask out."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmlab.batch import Batch, Input, Modality
from mmlab.models.network import Network


class Encoded(NamedTuple):
    """Token features of the rows of one input."""

    tokens: Float[Tensor, "rows tokens dim"]
    mask: Bool[Tensor, "rows tokens"]
    """True at tokens that stand for something; each row has at least one."""


class Encoder(Network):
    """Turns the rows of one modality into token features.

    The rows of absent samples are encoded too (see :class:`mmlab.batch.Input`); whoever reads the result
    leaves them out by `Input.owner`.
    """

    modality: Modality
    dim: int
    """Size of a token's features."""
    layers_per_token: int = 1
    """How many layers' features stand side by side in a token."""

    def forward(self, inputs: Input) -> Encoded:
        """Encode every row, or pass on the tokens that this encoder gave before (`Input.encoded`).

        Raises:
            ValueError: Tokens are given to an encoder that is trained, or are of another size.
        """
        if not inputs.encoded:
            return self.encode(inputs)
        if any(parameter.requires_grad for parameter in self.parameters()):
            raise ValueError(
                f"{type(self).__name__} is trained, but the data bring features that it gave before: freeze "
                "it, or leave data.loading.features out"
            )
        if inputs.data.shape[2] != self.dim:
            raise ValueError(
                f"features of {self.modality} have size {inputs.data.shape[2]}, but {type(self).__name__} "
                f"gives {self.dim}: make them anew (mmlab data features)"
            )
        dtype = next((parameter.dtype for parameter in self.parameters()), torch.float32)
        mask = inputs.mask
        if mask is None:
            mask = torch.ones(inputs.data.shape[:2], dtype=torch.bool, device=inputs.data.device)
        return Encoded(inputs.data.to(dtype), mask)

    def try_out(self) -> None:
        """Run on :meth:`example`."""
        device = next((parameter.device for parameter in self.parameters()), torch.device("cpu"))
        self(self.example().to(device))

    def example(self) -> Input:
        """The smallest blank input that the encoder takes, for looking at what it computes; on the CPU.

        Here a picture of 224 x 224, two tokens, a second of sound at 16 kHz, or 16 steps of one channel; an
        encoder that needs another size says so.
        """
        one = torch.ones(1, dtype=torch.int64)
        blank = {
            Modality.IMAGE: torch.zeros(1, 3, 224, 224, dtype=torch.uint8),
            Modality.TEXT: torch.zeros(1, 2, dtype=torch.int64),
            Modality.AUDIO: torch.zeros(1, 16_000),
            Modality.SIGNAL: torch.zeros(1, 16, 1),
        }[self.modality]
        length = None if self.modality is Modality.IMAGE else one * blank.shape[1]
        return Input(blank, owner=one - 1, present=one.bool(), length=length)

    @abstractmethod
    def encode(self, inputs: Input) -> Encoded:
        """Encode every row."""


def input_of(batch: Batch, modality: Modality) -> Input:
    """What a tower reads of a batch.

    Raises:
        ValueError: The run does not read the modality.
    """
    inputs = batch.get(modality)
    if inputs is None:
        raise ValueError(
            f"the model has a tower for {modality}, but the data module reads no {modality}: "
            f"add it there, or remove the tower `{modality}`"
        )
    return inputs
