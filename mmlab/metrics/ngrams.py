"""Runs of words, counted: what BLEU and CIDEr compare."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

LONGEST = 4
"""Words in the longest n-gram of BLEU and CIDEr."""

Words: TypeAlias = Sequence[str]
Ngrams: TypeAlias = Counter[tuple[str, ...]]


def count_ngrams(words: Words, *, longest: int = LONGEST) -> Ngrams:
    """How often each run of 1 to `longest` words stands in a text."""
    counts: Ngrams = Counter()
    for length in range(1, longest + 1):
        counts.update(zip(*(words[start:] for start in range(length)), strict=False))
    return counts
