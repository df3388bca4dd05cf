"""CIDEr and CIDEr-D, to the last digits as coco-caption and its authors' own code compute them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mmlab.metrics.ngrams import LONGEST, Ngrams, Words, count_ngrams

SIGMA = 6.0
"""Difference in length at which CIDEr-D leaves exp(-1/2) of a similarity."""


class Cider(NamedTuple):
    """Of one answer: 10 times the mean over its references and over n-grams of 1 to 4 words."""

    plain: float
    """Cosine similarity, of what the authors' repository calls CIDEr; at most 10."""
    d: float
    """With clipped weights and a penalty on the difference in length. coco-caption calls this CIDEr."""


class _Weighted(NamedTuple):
    """A text as weights of its n-grams."""

    weights: dict[tuple[str, ...], float]
    norms: list[float]
    """For n-grams of 1, 2, ... words."""
    pairs: int
    """Of neighbouring words: how the authors' code measures length."""


def cider(said: Sequence[Words], right: Sequence[Sequence[Words]]) -> list[Cider]:
    """CIDEr of each answer (Vedantam et al. 2015, equations 1 to 4).

    An n-gram weighs its count times log(samples / samples with a reference that has it), at least one sample
    being taken for the latter. So n-grams that stand in the references of every sample weigh nothing, and
    with one sample all do: CIDEr is 0 there, whatever was said. It says nothing of few samples.

    Args:
        said: The words of each sample's answer; there may be none.
        right: The words of each of its references.
    """
    references = [[count_ngrams(reference) for reference in own] for own in right]
    samples_with = Counter(ngram for own in references for ngram in set().union(*own))
    highest = math.log(len(references))
    rarity = {ngram: highest - math.log(count) for ngram, count in samples_with.items()}
    scores = []
    for answer, own in zip(said, references, strict=True):
        ours = _weigh(count_ngrams(answer), rarity, highest)
        found = [_similarity(ours, _weigh(reference, rarity, highest)) for reference in own]
        scores.append(Cider(*(10 * sum(values) / len(found) for values in zip(*found, strict=True))))
    return scores


def _weigh(counts: Ngrams, rarity: Mapping[tuple[str, ...], float], highest: float) -> _Weighted:
    weights = {ngram: count * rarity.get(ngram, highest) for ngram, count in counts.items()}
    squares, pairs = [0.0] * LONGEST, 0
    for ngram, weight in weights.items():
        squares[len(ngram) - 1] += weight * weight
        pairs += counts[ngram] if len(ngram) == 2 else 0
    return _Weighted(weights, [math.sqrt(square) for square in squares], pairs)


def _similarity(said: _Weighted, right: _Weighted) -> Cider:
    """Of an answer to one reference, at most 1."""
    plain, clipped = [0.0] * LONGEST, [0.0] * LONGEST
    for ngram, weight in said.weights.items():
        other = right.weights.get(ngram)
        if other is not None:
            plain[len(ngram) - 1] += weight * other
            clipped[len(ngram) - 1] += min(weight, other) * other
    norms = [one * other or 1.0 for one, other in zip(said.norms, right.norms, strict=True)]
    penalty = math.exp(-((said.pairs - right.pairs) ** 2) / (2 * SIGMA**2))
    return Cider(
        plain=sum(value / norm for value, norm in zip(plain, norms, strict=True)) / LONGEST,
        d=penalty * sum(value / norm for value, norm in zip(clipped, norms, strict=True)) / LONGEST,
    )
