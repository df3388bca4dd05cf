"""What is told of each sample: one of several classes, one of several ranks, or a number on a scale."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from mmlab.batch import Batch
from mmlab.metrics.classification import ClassScores
from mmlab.metrics.regression import ScaleScores
from mmlab.metrics.text import Answered, TextScore
from mmlab.objectives.classification import SoftCrossEntropy
from mmlab.objectives.loss import Loss, mean_of
from mmlab.objectives.scale import Error, number_errors, rank_errors

Others = Literal["refuse", "leave_out"]
"""What becomes of samples whose label is none that the config names."""


class Wanted(NamedTuple):
    """What should be told of the samples of a batch."""

    value: Float[Tensor, " samples"]
    """A number, or the number of a class or rank."""
    known: Bool[Tensor, " samples"]
    """False where a sample has no label, or is left out."""


class Outcome(ABC):
    """Reads labels, and says them; what the head gives lies in between."""

    size: int
    """Numbers that the head gives of each sample."""
    others: Others

    @abstractmethod
    def read(self, label: str) -> float:
        """The number that a label stands for; references come as the samples have them.

        Raises:
            ValueError: It is none that the config names.
        """

    @abstractmethod
    def loss(
        self,
        logits: Float[Tensor, "samples size"],
        wanted: Wanted,
        place: Int64[Tensor, " samples"],
    ) -> Loss:
        """The loss over samples whose label is known."""

    @abstractmethod
    def say(self, logits: Float[Tensor, "samples size"]) -> list[str]:
        """What is told of each sample."""

    @abstractmethod
    def usual_scores(self) -> list[TextScore]:
        """What it is measured by."""

    def label(self, key: str, references: Sequence[str]) -> float | None:
        """What should be told of a sample, None where nothing is known or it is left out.

        Raises:
            ValueError: The label is none that the config names, and such are refused.
        """
        if not references:
            return None
        try:
            return self.read(references[0])
        except ValueError as error:
            if self.others == "leave_out":
                return None
            raise ValueError(
                f"sample {key!r}: {error}; or set others to leave_out (counted as test/labelled)"
            ) from None

    def wanted(self, batch: Batch) -> Wanted:
        """What should be told of the samples of a batch.

        Raises:
            ValueError: See :meth:`label`.
        """
        found: list[float | None] = [None] * len(batch)
        if batch.references:
            valid = batch.valid.tolist()
            pairs = zip(batch.keys, batch.references, valid, strict=True)
            found = [self.label(key, known) if there else None for key, known, there in pairs]
        value = torch.tensor([0.0 if one is None else one for one in found])
        known = torch.tensor([one is not None for one in found])
        return Wanted(value.to(batch.valid.device), known.to(batch.valid.device))


class Classes(Outcome):
    """One of several classes, by cross-entropy.

    Args:
        labels: The classes, as the samples name them.
        weights: Of the loss of each class, by label; None: 1 each.
        label_smoothing: See :class:`~mmlab.objectives.classification.SoftCrossEntropy`.
        others: A label that is not in the list is refused, or its sample left out.

    Raises:
        ValueError: Fewer than two labels, one twice, or weights of others.
    """

    def __init__(
        self,
        labels: list[str],
        *,
        weights: dict[str, float] | None = None,
        label_smoothing: float = 0.0,
        others: Others = "refuse",
    ) -> None:
        self.labels = _checked(labels)
        if weights is not None and set(weights) != set(labels):
            raise ValueError(f"weights are of {', '.join(weights)}: give one to each of {', '.join(labels)}")
        self.weights = None if weights is None else [weights[label] for label in labels]
        self.others = others
        self.size = len(labels)
        self._objective = SoftCrossEntropy(label_smoothing)

    def read(self, label: str) -> float:
        """Its place in the list."""
        return _place(label, self.labels)

    def loss(self, logits: Tensor, wanted: Wanted, place: Tensor) -> Loss:
        """Cross-entropy, a sample weighing what its class does."""
        target = torch.nn.functional.one_hot(wanted.value.long(), self.size).float()
        if self.weights is not None:
            target = target * torch.tensor(self.weights, device=target.device)
        loss: Loss = self._objective(logits, target.masked_fill(~wanted.known[:, None], 0), place)
        return loss

    def say(self, logits: Tensor) -> list[str]:
        """The likeliest class."""
        return [self.labels[number] for number in logits.argmax(dim=1).tolist()]

    def usual_scores(self) -> list[TextScore]:
        """Accuracy, F1, unweighted average recall."""
        return [ClassScores(self.labels)]


class Ranks(Outcome):
    """One of several classes in an order, by asking at each step whether the rank is above it.

    Args:
        labels: The classes from the lowest to the highest; the head gives one number less.
        others: A label that is not in the list is refused, or its sample left out.

    Raises:
        ValueError: Fewer than two labels, or one twice.
    """

    def __init__(self, labels: list[str], *, others: Others = "refuse") -> None:
        self.labels = _checked(labels)
        self.others = others
        self.size = len(labels) - 1

    def read(self, label: str) -> float:
        """Its place in the list."""
        return _place(label, self.labels)

    def loss(self, logits: Tensor, wanted: Wanted, place: Tensor) -> Loss:
        """The mean of :func:`~mmlab.objectives.scale.rank_errors`."""
        errors = rank_errors(logits, wanted.value.long()).masked_fill(~wanted.known, 0)
        return mean_of(errors, wanted.known.float(), place)

    def say(self, logits: Tensor) -> list[str]:
        """As many steps up as are likelier than not."""
        return [self.labels[number] for number in (logits > 0).sum(dim=1).tolist()]

    def usual_scores(self) -> list[TextScore]:
        """Those of classes, and how many ranks answers are off."""
        return [ClassScores(self.labels, ordered=True)]


class Scale(Outcome):
    """A number on a scale, such as sentiment from -3 to 3.

    Args:
        low: The lowest that a label can be.
        high: The highest.
        error: What is minimised of the difference.
        others: A label that is no number from `low` to `high` is refused, or its sample left out.

    Raises:
        ValueError: `low` is not below `high`.
    """

    size = 1

    def __init__(
        self, low: float = -3.0, high: float = 3.0, *, error: Error = "absolute", others: Others = "refuse"
    ) -> None:
        if not low < high:
            raise ValueError(f"low={low} must be below high={high}")
        self.low = low
        self.high = high
        self.error: Error = error
        self.others = others

    def read(self, label: str) -> float:
        """The number."""
        try:
            value = float(label)
        except ValueError:
            value = math.nan
        if not self.low <= value <= self.high:
            raise ValueError(
                f"the label {label!r} is no number from {self.low:g} to {self.high:g}: correct it"
            )
        return value

    def loss(self, logits: Tensor, wanted: Wanted, place: Tensor) -> Loss:
        """The mean of :func:`~mmlab.objectives.scale.number_errors`."""
        errors = number_errors(logits[:, 0], wanted.value, error=self.error).masked_fill(~wanted.known, 0)
        return mean_of(errors, wanted.known.float(), place)

    def say(self, logits: Tensor) -> list[str]:
        """The number, with as many digits as float32 has."""
        return [f"{value:.9g}" for value in logits[:, 0].float().tolist()]

    def usual_scores(self) -> list[TextScore]:
        """Those of CMU-MOSI."""
        return [ScaleScores()]


class Labelled(TextScore):
    """`labelled`, the share of samples that have a label: others are not scored."""

    of_references = False

    def __call__(self, answers: Sequence[Answered]) -> dict[str, float]:
        """The share."""
        return {"labelled": sum(bool(one.references) for one in answers) / len(answers)}


def _checked(labels: Sequence[str]) -> tuple[str, ...]:
    if len(set(labels)) != len(labels) or len(labels) < 2:
        raise ValueError(f"labels: {', '.join(labels)}: name two or more, each once")
    return tuple(labels)


def _place(label: str, labels: Sequence[str]) -> float:
    if label not in labels:
        raise ValueError(
            f"the label {label!r} is none of {', '.join(labels)}: correct it, or add it to labels"
        )
    return float(labels.index(label))
