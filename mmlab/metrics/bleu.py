"""BLEU of a whole evaluation, to the last digit as coco-caption computes it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mmlab.metrics.ngrams import LONGEST, Words, count_ngrams

SMALL, TINY = 1e-9, 1e-15
"""Keep coco-caption's divisions from 0: the first is added to what divides, the second to what is divided."""


def corpus_bleu(said: Sequence[Words], right: Sequence[Sequence[Words]]) -> list[float]:
    """BLEU-1 to BLEU-4 (Papineni et al. 2002, section 2.3), with equal weights and without smoothing.

    Matches, lengths and references' lengths are summed over all samples before anything is divided. The
    length to reach is that of the reference nearest to what was said, the shorter of two equally near.
    `TINY` leaves a BLEU-n without any match just above 0, as in coco-caption.

    Args:
        said: The words of each sample's answer; there may be none.
        right: The words of each of its references.
    """
    matched, possible = [0] * LONGEST, [0] * LONGEST
    length, to_reach = 0, 0
    for answer, references in zip(said, right, strict=True):
        length += len(answer)
        to_reach += min((abs(len(reference) - len(answer)), len(reference)) for reference in references)[1]
        for order in range(LONGEST):
            possible[order] += max(0, len(answer) - order)
        for order, number in enumerate(_matches(answer, references)):
            matched[order] += number
    ratio = (length + TINY) / (to_reach + SMALL)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    product, scores = 1.0, []
    for order in range(LONGEST):
        product *= (matched[order] + TINY) / (possible[order] + SMALL)
        scores.append(product ** (1 / (order + 1)) * penalty)
    return scores


def _matches(answer: Words, references: Sequence[Words]) -> list[int]:
    """N-grams of the answer, by length, each at most as often as in the reference that has it most often."""
    counted = [count_ngrams(reference) for reference in references]
    matched = [0] * LONGEST
    for ngram, count in count_ngrams(answer).items():
        matched[len(ngram) - 1] += min(count, max(reference[ngram] for reference in counted))
    return matched
