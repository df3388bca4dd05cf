"""Scores of classes: accuracy, F1, recall, and which class is taken for which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch

from mmlab.metrics.ranking import Scores, bootstrap_interval
from mmlab.metrics.text import Answered, TextScore, groups, with_interval

_OTHERS = "(others)"


class Confusion(NamedTuple):
    """How often each label was said of each."""

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    """A row for each right label, a column for each that was said."""


def confusion(
    answers: Sequence[Answered], labels: Sequence[str] = (), *, limit: int | None = None
) -> Confusion:
    """Count what was said of what; labels that are not in the list follow it in the order of the alphabet.

    Args:
        answers: With a reference each.
        labels: Those that stand first.
        limit: Of more labels the commonest right ones stay, and the rest are one, `(others)`; None: all stay.
    """
    right = Counter(one.references[0] for one in answers)
    more = sorted(({one.prediction for one in answers} | set(right)) - set(labels))
    kept = (*labels, *more)
    if limit is not None and len(kept) > limit:
        kept = tuple(label for label, _ in right.most_common(limit - 1))
    shown = {label: label for label in kept}
    pairs = Counter(
        (shown.get(one.references[0], _OTHERS), shown.get(one.prediction, _OTHERS)) for one in answers
    )
    every = (*kept, _OTHERS) if any(_OTHERS in pair for pair in pairs) else kept
    return Confusion(every, tuple(tuple(pairs[right, said] for said in every) for right in every))


class ClassScores(TextScore):
    """Accuracy, and precision and recall over classes.

    Numbers of scikit-learn: `macro_f1` and `weighted_f1` are `f1_score` over all labels that are right or
    said somewhere, `uar` (unweighted average recall) is `balanced_accuracy_score`, over labels that are right
    somewhere. For ordered classes also `rank_error`, the mean number of ranks between what is said and what
    is right.

    Args:
        labels: In the order in which a table of confusions shows them.
        ordered: Whether they are ranks, from the lowest.

    Raises:
        ValueError: Ranks without labels.
    """

    def __init__(self, labels: Sequence[str] = (), *, ordered: bool = False) -> None:
        if ordered and not labels:
            raise ValueError("ordered classes need their labels, from the lowest to the highest")
        self.labels = tuple(labels)
        self.ordered = ordered

    def __call__(self, answers: Sequence[Answered]) -> dict[str, float]:
        """`uar` and `accuracy` with their intervals, `macro_f1`, `weighted_f1`."""
        table = confusion(answers)
        right = [sum(row) for row in table.counts]
        said = [sum(column) for column in zip(*table.counts, strict=True)]
        hits = [row[number] for number, row in enumerate(table.counts)]
        f1 = [2 * hit / (known + told) for hit, known, told in zip(hits, right, said, strict=True)]
        weighted = sum(value * known for value, known in zip(f1, right, strict=True)) / sum(right)
        hit = [float(one.prediction == one.references[0]) for one in answers]
        found = _recall(answers, hit) | with_interval("accuracy", hit, answers)
        found |= {"macro_f1": sum(f1) / len(f1), "weighted_f1": weighted}
        if self.ordered:
            place = {label: number for number, label in enumerate(self.labels)}
            apart = [abs(place[one.prediction] - place[one.references[0]]) for one in answers]
            found["rank_error"] = sum(apart) / len(apart)
        return found

    def normal(self, text: str) -> str:
        """Labels are compared as they are."""
        return text


def _recall(answers: Sequence[Answered], hit: Sequence[float]) -> dict[str, float]:
    """The mean over classes of the share of their samples that is found, and its interval."""
    right = [one.references[0] for one in answers]
    group, value = groups(answers), torch.tensor(hit, dtype=torch.float64)
    of_class = [torch.tensor([label == one for one in right]) for label in dict.fromkeys(right)]
    scores = [Scores(value[chosen], group[chosen]) for chosen in of_class]
    interval = bootstrap_interval(scores, seed=0)
    uar = float(torch.stack([score.value.mean() for score in scores]).mean())
    return {"uar": uar, "uar_low": interval.low, "uar_high": interval.high}
