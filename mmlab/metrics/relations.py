"""Scores of relations: no relation is no answer, as TACRED and MNRE count."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mmlab.metrics.entities import f1_interval, score_of
from mmlab.metrics.text import Answered, TextScore, with_interval


class RelationScores(TextScore):
    """Strict micro precision, recall and F1 over all relations but that of no relation, and accuracy.

    A relation is right where it is named as it is, between the head and the tail in their order. The numbers
    are scikit-learn's `f1_score(..., labels=<all but none>, average="micro")`, 0 where they are 0 / 0.

    Args:
        none: What stands for no relation; None: every label is a relation.
    """

    def __init__(self, none: str | None = "None") -> None:
        self.none = none

    def __call__(self, answers: Sequence[Answered]) -> dict[str, float]:
        """`f1` with its interval, `precision`, `recall`, `accuracy` with its interval."""
        pairs = [(one.prediction, one.references[0]) for one in answers]
        hit = [said == right for said, right in pairs]
        counts = torch.tensor(
            [
                [one and right != self.none, said != self.none, right != self.none]
                for one, (said, right) in zip(hit, pairs, strict=True)
            ],
            dtype=torch.float64,
        )
        hits, told, known = (int(total) for total in counts.sum(dim=0).tolist())
        score = score_of(hits, told, known)
        low, high = f1_interval(counts, answers)
        found = {"f1": score.f1, "f1_low": low, "f1_high": high}
        found |= {"precision": score.precision, "recall": score.recall}
        return found | with_interval("accuracy", [float(one) for one in hit], answers)

    def normal(self, text: str) -> str:
        """Relations are compared as they are."""
        return text
