"""Gradient-Blend: losses of each modality and of all, weighed by how they generalise (Wang et al. 2020)."""

from __future__ import annotations

import logging
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

_log = logging.getLogger(__name__)

FUSED = "fused"
"""Name of the loss of all modalities together."""
LEAST_GROWTH = 1e-3
"""Growth of overfitting below this is taken for this: it would be the noise of the losses that decides."""
FLOOR = 0.1
"""Share of estimated weights that is spread equally over the branches, whatever they have gained."""


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


def reweighed(
    weights: Sequence[float], before: Sequence[Measured], after: Sequence[Measured]
) -> list[float] | None:
    """The weights that follow on others; they add up to 1.

    Branches with a number at both moments divide what they have of the weights so far by
    :func:`blend_weights`, but :data:`FLOOR` of it equally; each other branch keeps its share of all.

    Args:
        weights: So far.
        before: Of each branch, at the earlier moment; what is not known is no finite number.
        after: Of the same, later.

    Returns:
        None where no branch has gained anything.
    """
    known = [_known(old) and _known(new) for old, new in zip(before, after, strict=True)]
    pairs = [pair for pair, there in zip(zip(before, after, strict=True), known, strict=True) if there]
    found = blend_weights([old for old, _ in pairs], [new for _, new in pairs])
    if found is None:
        return None
    shares = [weight / sum(weights) for weight in weights]
    own = sum(share for share, there in zip(shares, known, strict=True) if there)
    blended = iter(own * (FLOOR / len(found) + (1 - FLOOR) * weight) for weight in found)
    return [next(blended) if there else share for share, there in zip(shares, known, strict=True)]


class GradientBlend(Balance):
    """Minimises w_fused L_fused + sum_m w_m L_m: of all modalities together, and of a head on each tower.

    The heads are trained with the model and used for nothing else. Weights are given, or taken anew every so
    many validations from what was seen between two of them (the online form). The paper trains every branch
    apart to measure how it overfits; here they are measured in the training that goes on: training losses are
    means over the steps since the last validation, as they came, with dropout. For the offline form run with
    `every` once, and give what it logs last (`train/balance/weight/...`) as `weights`.

    Weights that are estimated differ from the paper's in two ways. A branch whose validation loss has not
    fallen keeps a part of :data:`FLOOR`: with the weight 0 it would not be trained, so that it could gain
    nothing, and would have 0 in every later estimate; where it is the fused one, the model itself would not
    be trained. A branch without a number, such as that of a modality that no validation sample has, keeps
    its share, and the others are estimated.
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
        self._named = False

    def losses(self, name: str, said: Classified, criterion: Criterion) -> dict[str, Loss]:
        """The losses of all branches, each times its weight."""
        branches = _branches(said, criterion)
        if self.every is not None:
            own = _sums(branches)
            # One such step, which may well be left out, would leave no number until the next validation.
            own = own.masked_fill(~own.isfinite().all(dim=1, keepdim=True), 0)
            self._trained = own if self._trained is None else self._trained.to(own) + own
        names = [name, *(f"{name}/{modality.value}" for modality in self.modalities)]
        return {
            one: scaled(loss, weight) for one, loss, weight in zip(names, branches, self.weights, strict=True)
        }

    def measure(self, said: Classified, criterion: Criterion) -> None:
        """Add the losses of a validation batch."""
        own = _sums(_branches(said, criterion))
        self._validated = own if self._validated is None else self._validated + own

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
        if any(_known(one) for one in now):
            self._validations += 1
            if self.every is not None and self._validations % self.every == 0:
                self._name_unknown(now)
                found = None if self._before is None else reweighed(self.weights, self._before, now)
                self.weights = self.weights if found is None else found
                self._before = now
        return {f"loss/{name}": one.validated for name, one in zip(self.branches, now, strict=True)}

    def _name_unknown(self, now: Sequence[Measured]) -> None:
        """Say once which branches have no number."""
        unknown = [name for name, one in zip(self.branches, now, strict=True) if not _known(one)]
        if unknown and not self._named and collectives.rank() == 0:
            self._named = True
            _log.warning(
                "balance: GradientBlend has no finite training and validation loss of %s: the weight stays, "
                "and the others are estimated; see whether validation samples have it", ", ".join(unknown),
            )  # fmt: skip

    def numbers(self) -> dict[str, Tensor | float]:
        """The weight of each branch."""
        return {f"weight/{name}": weight for name, weight in zip(self.branches, self.weights, strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """Weights, what they were taken from, and the losses since; every rank must call this."""
        if self.every is None:
            return {}
        # After a resume the first rank alone has sums, on the CPU: every rank gives some, past the device.
        own = torch.zeros(len(self.branches), 2).double() if self._trained is None else self._trained
        trained = collectives.gather_rows(own[None]).sum(dim=0)
        return {
            "weights": self.weights,
            "before": None if self._before is None else [list(one) for one in self._before],
            "validations": self._validations,
            "trained": trained.tolist(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there; the first rank holds the sums of all."""
        if self.every is None or not state:
            return
        self.weights = list(state["weights"])
        self._before = None if state["before"] is None else [Measured(*one) for one in state["before"]]
        self._validations = state["validations"]
        # Older checkpoints have None where there was no step.
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


def _sums(branches: Sequence[Loss]) -> Float[Tensor, "branches 2"]:
    """Sums of losses and of weights over the samples of a batch."""
    assert all(loss.shares for loss in branches), "losses that tell what each sample adds"
    return torch.stack(
        [torch.stack([loss.shares[0].loss.sum(), loss.shares[0].weight.sum()]) for loss in branches]
    ).double()


def _known(measured: Measured) -> bool:
    """Whether both losses are numbers."""
    return all(math.isfinite(loss) for loss in measured)
