"""Gradient-Blend: losses of each modality and of all, weighed by how they generalise (Wang et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mmlab import collectives
from mmlab.balance.balance import Balance, Criterion
from mmlab.models.fusion_classifier import Classified, FusionClassifier
from mmlab.models.unimodal import OwnHeads, Unimodal
from mmlab.objectives.loss import Loss

FUSED = "fused"
"""Name of the loss of all modalities together."""
LEAST_GROWTH = 1e-3
"""Growth of overfitting below this is taken for this: it would be the noise of the losses that decides."""


class Measured(NamedTuple):
    """Mean losses of one branch at one moment."""

    trained: float
    """Over training samples."""
    validated: float
    """Over validation samples."""


def blend_weights(before: Sequence[Measured], after: Sequence[Measured]) -> list[float] | None:
    """The weight of each branch: w_k = G_k / O_k^2, over their sum (arXiv:1905.12681, algorithm 1).

    G is the generalisation that was gained, the fall of the validation loss, and O the growth of overfitting,
    that of the gap between validation and training loss (section 3.1). A branch whose validation loss has
    not fallen has the weight 0; |O| counts as :data:`LEAST_GROWTH` at least.

    Args:
        before: Of each branch, at the earlier moment.
        after: Of the same, later.

    Returns:
        None where no branch has gained anything.
    """
    found = []
    for old, new in zip(before, after, strict=True):
        gained = old.validated - new.validated
        grown = (new.validated - new.trained) - (old.validated - old.trained)
        found.append(max(gained, 0.0) / max(abs(grown), LEAST_GROWTH) ** 2)
    return [weight / sum(found) for weight in found] if sum(found) > 0 else None


class GradientBlend(Balance):
    """Minimises w_fused L_fused + sum_m w_m L_m: of all modalities together, and of a head on each tower.

    The heads are trained with the model and used for nothing else. Weights are given, or taken anew every so
    many validations from what was seen between two of them (the online form). The paper trains every branch
    apart to measure how it overfits; here they are measured in the training that goes on: training losses are
    means over the steps since the last validation, as they came, with dropout. For the offline form run with
    `every` once, and give what it logs last (`train/balance/weight/...`) as `weights`.
    """

    def __init__(self, weights: dict[str, float] | None = None, *, every: int | None = None) -> None:
        """Take the settings.

        Args:
            weights: Of the losses at the start, by modality, and `fused`; None: the same for each, 1 in all.
            every: Validations between two estimates of the weights, which then run the model twice; None:
                they stay.

        Raises:
            ValueError: A weight below 0, none above it, or `every` below 1.
        """
        if weights is not None and (min(weights.values(), default=0) < 0 or sum(weights.values()) <= 0):
            raise ValueError(f"weights={weights}: none may be below 0, and one must be above it")
        if every is not None and every < 1:
            raise ValueError(f"every={every}: it must be at least 1 validation")
        self.given = weights
        self.every = every
        self.validates = every is not None
        self.start()

    def unimodal(self, model: FusionClassifier) -> Unimodal:
        """A head for each tower."""
        names = [FUSED, *(modality.value for modality in self.modalities)]
        if self.given is not None and set(self.given) != set(names):
            raise ValueError(
                f"weights are of {', '.join(self.given)}: give one to each of {', '.join(names)}"
            )
        self.start()
        return OwnHeads({m: tower.dim for m, tower in model.towers()}, classes=model.head.classes)

    @property
    def branches(self) -> list[str]:
        """Names of the losses, that of all modalities first."""
        return [FUSED, *(modality.value for modality in self.modalities)]

    def start(self) -> None:
        """Begin with the weights that are given, and forget what was measured."""
        names = self.branches
        equal = 1 / len(names)
        self.weights = [equal if self.given is None else self.given.get(name, equal) for name in names]
        self._trained: Tensor | None = None
        self._validated: Tensor | None = None
        self._before: list[Measured] | None = None
        self._validations = 0

    def losses(self, name: str, said: Classified, criterion: Criterion) -> dict[str, Loss]:
        """The losses of all branches, each times its weight."""
        branches = _branches(said, criterion)
        if self.every is not None:
            self._trained = _added(self._trained, branches)
        names = [name, *(f"{name}/{modality.value}" for modality in self.modalities)]
        return {
            one: scaled(loss, weight) for one, loss, weight in zip(names, branches, self.weights, strict=True)
        }

    def measure(self, said: Classified, criterion: Criterion) -> None:
        """Add the losses of a validation batch."""
        self._validated = _added(self._validated, _branches(said, criterion))

    def after_validation(self) -> dict[str, float]:
        """Take new weights, if it is time; returns the validation loss of each branch."""
        assert self._validated is not None, "measured"
        # After a resume in the middle of a validation, what was seen in training lies on the CPU.
        nothing = torch.zeros_like(self._validated)
        trained = nothing if self._trained is None else self._trained.to(nothing)
        sums = collectives.total(torch.stack([trained, self._validated])).tolist()
        self._trained = self._validated = None
        means = [[loss / weight if weight > 0 else math.nan for loss, weight in part] for part in sums]
        now = [Measured(*pair) for pair in zip(*means, strict=True)]
        # Without labels, or without a step before, there is nothing to learn from.
        if all(math.isfinite(value) for one in now for value in one):
            self._validations += 1
            if self.every is not None and self._validations % self.every == 0:
                found = None if self._before is None else blend_weights(self._before, now)
                self.weights = self.weights if found is None else found
                self._before = now
        return {f"loss/{name}": one.validated for name, one in zip(self.branches, now, strict=True)}

    def numbers(self) -> dict[str, Tensor | float]:
        """The weight of each branch."""
        return {f"weight/{name}": weight for name, weight in zip(self.branches, self.weights, strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """Weights, what they were taken from, and the losses since; every rank must call this."""
        if self.every is None:
            return {}
        return {
            "weights": self.weights,
            "before": None if self._before is None else [list(one) for one in self._before],
            "validations": self._validations,
            "trained": None if self._trained is None else collectives.total(self._trained).tolist(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there; the first rank holds the sums of all."""
        if self.every is None or not state:
            return
        self.weights = list(state["weights"])
        self._before = None if state["before"] is None else [Measured(*one) for one in state["before"]]
        self._validations = state["validations"]
        if state["trained"] is not None and collectives.rank() == 0:
            self._trained = torch.tensor(state["trained"], dtype=torch.float64)


def scaled(loss: Loss, weight: float) -> Loss:
    """A loss times a weight, and so what each sample adds."""
    shares = tuple(share._replace(loss=share.loss * weight) for share in loss.shares)
    return Loss(loss.value * weight, shares)


def _branches(said: Classified, criterion: Criterion) -> list[Loss]:
    """The loss of all modalities together, then of each alone over the samples that have it."""
    assert said.alone is not None, "heads always say something"
    logits, present = said.alone
    alone = [criterion(logits[:, n], present[:, n]) for n in range(logits.shape[1])]
    return [criterion(said.logits, said.valid), *alone]


def _added(sums: Tensor | None, branches: Sequence[Loss]) -> Float[Tensor, "branches 2"]:
    """Sums of losses and of weights over samples, with those of a batch."""
    assert all(loss.shares for loss in branches), "losses that tell what each sample adds"
    own = torch.stack(
        [torch.stack([loss.shares[0].loss.sum(), loss.shares[0].weight.sum()]) for loss in branches]
    ).double()
    return own if sums is None else sums.to(own.device) + own
