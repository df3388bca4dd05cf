"""What every way to keep modalities in balance is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import Tensor

from mmlab.batch import Modality
from mmlab.models.fusion_classifier import Classified, FusionClassifier
from mmlab.models.unimodal import Unimodal
from mmlab.objectives.loss import Loss

Criterion = Callable[[Tensor, Tensor], Loss]
"""The loss of logits [samples, classes] over those samples of a batch that count [samples]."""


class Balance(ABC):
    """Looks at what each modality of a classifier says alone, and acts on losses or gradients.

    A task calls `prepare` once, `start` before each training, `losses` in each training step and
    `before_step` once the gradients of an optimizer step stand; all of it on every rank.
    """

    modalities: tuple[Modality, ...] = ()
    """Those of the towers, in their order."""
    validates = False
    """Whether it learns from the losses of validation samples."""

    def prepare(self, model: FusionClassifier) -> None:
        """Let a built model say what each modality says alone, before it is adapted.

        Raises:
            ValueError: It has one tower only, or the settings name modalities that it has not.
        """
        self.modalities = tuple(modality for modality, _ in model.towers())
        if len(self.modalities) < 2:
            raise ValueError(
                f"balance: the model has one tower, {self.modalities[0]}: there is nothing to balance: leave "
                "balance out"
            )
        model.unimodal = self.unimodal(model)

    @abstractmethod
    def unimodal(self, model: FusionClassifier) -> Unimodal:
        """What tells of each modality alone."""

    def check(self, trained: Collection[str]) -> None:  # noqa: B027  (some ask for nothing)
        """Raise ValueError where nothing would come of it with these parameters of the model trained."""

    @abstractmethod
    def start(self) -> None:
        """Forget what was seen; a training begins."""

    @abstractmethod
    def losses(self, name: str, said: Classified, criterion: Criterion) -> dict[str, Loss]:
        """What is minimised in a training step: the loss of all modalities together as `name`, and others."""

    @abstractmethod
    def numbers(self) -> dict[str, Tensor | float]:
        """What is logged under `train/balance/`, the same on every rank."""

    def before_step(  # noqa: B027  (some need none)
        self, model: FusionClassifier, *, seed: Callable[[int], int]
    ) -> None:
        """Act on gradients that are whole and not yet clipped.

        Args:
            model: Whose they are.
            seed: Of the n-th draw of this step, the same in a run that is resumed.
        """

    def measure(self, said: Classified, criterion: Criterion) -> None:  # noqa: B027  (some learn nothing)
        """Look at a validation batch."""

    def after_validation(self) -> dict[str, float]:
        """Learn from what was measured; returns what is logged under `val/`."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs; every rank must call this."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027  (some have none)
        """Go on from there."""
