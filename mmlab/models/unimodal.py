"""What a classifier of several modalities thinks of each sample from one of them alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mmlab.batch import Modality
from mmlab.models.encoders.encoder import Encoded
from mmlab.models.fusion.fusion import has_tokens
from mmlab.models.fusion.shared_space import never_empty
from mmlab.models.heads import ClassificationHead

Classify = Callable[[Mapping[Modality, Encoded]], Tensor]
"""What towers give to logits [samples, classes], whatever is missing."""


class Alone(NamedTuple):
    """What is thought of each sample from one modality at a time, in the order of the towers."""

    logits: Float[Tensor, "samples modalities classes"]
    present: Bool[Tensor, "samples modalities"]
    """Which modalities a sample has; logits of others say nothing."""


class Unimodal(nn.Module, ABC):
    """Tells what each modality says alone, in rows of samples: parts of a batch can stand side by side."""

    @abstractmethod
    def forward(self, encoded: Mapping[Modality, Encoded], classify: Classify) -> Alone | None:
        """Look at one modality at a time; None where nobody asks.

        Args:
            encoded: What the towers give.
            classify: Fusion and head.
        """


class MaskedPasses(Unimodal):
    """The model's own fusion and head, with all modalities but one missing; in training, without gradient.

    It costs a pass through fusion and head for each modality, and none through a tower.
    """

    @torch.no_grad()
    def forward(self, encoded: Mapping[Modality, Encoded], classify: Classify) -> Alone | None:
        """Mask all but one, each in turn."""
        if not self.training:
            return None
        logits = [
            classify(
                {
                    other: part if other is modality else part._replace(mask=torch.zeros_like(part.mask))
                    for other, part in encoded.items()
                }
            )
            for modality in encoded
        ]
        return Alone(torch.stack(logits, dim=1), _present(encoded))


class OwnHeads(Unimodal):
    """A head of its own on what each tower gives, with gradient."""

    def __init__(self, dims: Mapping[Modality, int], *, classes: int) -> None:
        """Make the heads.

        Args:
            dims: Size of the tokens of each tower.
            classes: Number of logits.
        """
        super().__init__()
        self.heads = nn.ModuleDict(
            {modality.value: ClassificationHead(dim, classes=classes) for modality, dim in dims.items()}
        )

    def forward(self, encoded: Mapping[Modality, Encoded], classify: Classify) -> Alone | None:
        """Run every head, whatever a batch lacks: the collectives of ranks match."""
        logits = [self.heads[modality.value](never_empty(part)) for modality, part in encoded.items()]
        return Alone(torch.stack(logits, dim=1), _present(encoded))


def _present(encoded: Mapping[Modality, Encoded]) -> Bool[Tensor, "samples modalities"]:
    return torch.cat([has_tokens(part) for part in encoded.values()], dim=1)
