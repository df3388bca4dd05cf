"""A linear probe: how well a linear classifier tells labels from vectors that are not trained for it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from mmlab import collectives
from mmlab.batch import NOBODY, Batch
from mmlab.metrics.ranking import Scores, bootstrap_interval


def ridge_scores(
    known: Float[Tensor, "known dim"],
    label: Int64[Tensor, " known"],
    asked: Float[Tensor, "asked dim"],
    *,
    classes: int,
    penalty: float,
) -> Float64[Tensor, "asked classes"]:
    """Scores of a ridge classifier: least squares towards 1 for the right class and -1 for the others.

    With X the vectors and Y the targets, both less their mean over the known, W minimises
    |X W - Y|^2 + c |W|^2. Solved in float64, by the smaller of two systems:
    W = X^T (X X^T + c)^-1 Y = (X^T X + c)^-1 X^T Y.

    Args:
        known: Vectors whose label is known.
        label: Number of the class of each.
        asked: Vectors to tell the class of.
        classes: Number of classes.
        penalty: c as a share of the mean eigenvalue of that system: the same for vectors of any scale.
    """
    x = known.double()
    mean = x.mean(dim=0)
    x = x - mean
    y = 2 * torch.nn.functional.one_hot(label, classes).double() - 1
    middle = y.mean(dim=0)
    few = x.shape[0] <= x.shape[1]
    gram = x @ x.T if few else x.T @ x
    cost = penalty * float(gram.diagonal().mean())
    # Vectors that are all alike tell nothing: any cost then gives weights of zero.
    gram = gram + (cost if cost > 0 else 1.0) * torch.eye(len(gram), dtype=torch.float64)
    if few:
        weight = x.T @ torch.linalg.solve(gram, y - middle)
    else:
        weight = torch.linalg.solve(gram, x.T @ (y - middle))
    scores: Tensor = (asked.double() - mean) @ weight + middle
    return scores


class Probed(NamedTuple):
    """What a probe said."""

    right: Bool[Tensor, " samples"]
    chance: Bool[Tensor, " samples"]
    """Whether the commonest label of the other half is right."""


def probe(
    vector: Float[Tensor, "samples dim"],
    label: Int64[Tensor, " samples"],
    group: Int64[Tensor, " samples"],
    *,
    penalty: float = 0.01,
) -> Probed:
    """Tell the label of each half of the samples from the other half.

    Groups (in the order in which they first come) go to the halves in turn, so that no two samples of one
    group are in both. A label that the other half does not have cannot be right.

    Args:
        vector: Of each sample.
        label: Number of its label.
        group: Of its group.
        penalty: See :func:`ridge_scores`.
    """
    classes = int(label.max()) + 1
    numbers = {value: number for number, value in enumerate(dict.fromkeys(group.tolist()))}
    half = torch.tensor([numbers[value] % 2 for value in group.tolist()])
    right = torch.zeros(len(label), dtype=torch.bool)
    chance = torch.zeros(len(label), dtype=torch.bool)
    for number in (0, 1):
        known, asked = half != number, half == number
        if known.any() and asked.any():
            scores = ridge_scores(
                vector[known], label[known], vector[asked], classes=classes, penalty=penalty
            )
            right[asked] = scores.argmax(dim=1) == label[asked]
            chance[asked] = label[known].bincount().argmax() == label[asked]
    return Probed(right, chance)


class LinearProbe:
    """:func:`probe` over a whole evaluation, for each modality: `probe/image/accuracy`.

    A sample's label is the first of its references; one without any, or that lacks the modality, is left out.
    `compute` gathers the samples of all ranks and sorts them by place.
    """

    def __init__(self, penalty: float = 0.01) -> None:
        """Start empty.

        Args:
            penalty: See :func:`ridge_scores`.
        """
        self.penalty = penalty
        self._vectors: dict[str, list[Tensor]] = {}
        self._about: dict[str, list[tuple[int, int, str]]] = {}

    def reset(self) -> None:
        """Start anew."""
        self._vectors, self._about = {}, {}

    def update(self, vectors: dict[str, Float[Tensor, "samples dim"]], batch: Batch) -> None:
        """Keep the vectors of a batch.

        Args:
            vectors: Of each sample, by the name of a modality.
            batch: Whose they are.
        """
        place, group = batch.place.tolist(), batch.group.tolist()
        for name, vector in vectors.items():
            inputs = next(inputs for modality, inputs in batch.inputs() if modality.value == name)
            there = (inputs.present & batch.valid & (batch.group != NOBODY)).tolist()
            used = [n for n, has in enumerate(there) if has and batch.references and batch.references[n]]
            kept = [(place[n], group[n], batch.references[n][0]) for n in used]
            self._about.setdefault(name, []).extend(kept)
            self._vectors.setdefault(name, []).append(vector.detach().float().cpu()[used])

    def compute(self) -> dict[str, float]:
        """`accuracy` with its interval over groups, and `chance_accuracy`; nothing where there are no labels.

        Every rank must call it.
        """
        found: dict[str, float] = {}
        for name in sorted(
            {name for names in collectives.gather_objects(list(self._vectors)) for name in names}
        ):
            vectors = self._vectors.get(name, [])
            vector = collectives.gather_rows(torch.cat(vectors) if vectors else torch.zeros(0, 0))
            about = [one for part in collectives.gather_objects(self._about.get(name, [])) for one in part]
            labels = {label: number for number, label in enumerate(sorted({label for *_, label in about}))}
            if len(labels) < 2:
                continue
            order = sorted(range(len(about)), key=lambda number: about[number][0])
            label = torch.tensor([labels[about[number][2]] for number in order])
            group = torch.tensor([about[number][1] for number in order])
            told = probe(vector[order], label, group, penalty=self.penalty)
            interval = bootstrap_interval([Scores(told.right.double(), group)], seed=0)
            found |= {
                f"probe/{name}/accuracy": float(told.right.double().mean()),
                f"probe/{name}/accuracy_low": interval.low,
                f"probe/{name}/accuracy_high": interval.high,
                f"probe/{name}/chance_accuracy": float(told.chance.double().mean()),
            }
        return found
