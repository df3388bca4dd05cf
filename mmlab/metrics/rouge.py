"""ROUGE-L of an answer, as coco-caption computes it."""

from __future__ import annotations

from collections.abc import Sequence

from mmlab.metrics.ngrams import Words

BETA = 1.2
"""How much more recall weighs than precision."""


def rouge_l(said: Words, right: Sequence[Words]) -> float:
    """F-measure of the longest common subsequence (Lin 2004, equations 2 to 4).

    Precision and recall are each the best over the references, maybe of different ones. An answer without
    words gets 0, but 1 if a reference has none either.
    """
    # To coco-caption a text without words is one empty word.
    answer = list(said) or [""]
    references = [list(reference) or [""] for reference in right]
    common = [common_length(answer, reference) for reference in references]
    precision = max(common) / len(answer)
    recall = max(length / len(reference) for length, reference in zip(common, references, strict=True))
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def common_length(one: Words, other: Words) -> int:
    """Length of the longest common subsequence.

    A row of the table of Wagner and Fischer is a number whose zeros are where the length grows by one, and
    the next row comes from one addition (Hyyrö 2004).
    """
    places: dict[str, int] = {}
    for place, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << place
    row = full = (1 << len(one)) - 1
    for word in other:
        matching = row & places.get(word, 0)
        row = ((row + matching) | (row - matching)) & full
    return len(one) - row.bit_count()
