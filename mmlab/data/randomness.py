"""Random numbers as hashes: words of splitmix64 over (purpose, seed, position).

No generator of a library, whose stream may change between releases, and no state.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from jaxtyping import Int64, UInt64

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
# What random words are for; keeps equal seeds from meeting in two places.
SHARDS, SAMPLES, SHIFT, WINDOWS, DRAW, TURNS = range(1, 7)

_Word = TypeVar("_Word", int, np.ndarray)


def _mix(word: _Word) -> _Word:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014): a bijection of 64-bit words."""
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _MASK
    word = word ^ (word >> 31)
    return word


def hash_labels(*labels: int) -> int:
    """A 64-bit word that depends on the labels and their order."""
    state = 0
    for label in labels:
        state = _mix(((state ^ (label & _MASK)) + _GOLDEN) & _MASK)
    return state


def random_words(count: int, *labels: int) -> UInt64[np.ndarray, " count"]:
    """Distinct random 64-bit words: splitmix64 from a state that is a hash of the labels."""
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
    return _mix(steps + np.uint64(hash_labels(*labels)))


def permutation(count: int, *labels: int) -> Int64[np.ndarray, " count"]:
    """A random order of 0 .. count - 1 that depends on the labels alone."""
    order: np.ndarray = np.argsort(random_words(count, *labels), kind="stable")
    return order


def draw_seed(seed: int, place: int) -> int:
    """The seed of the random numbers (`random.Random`) of the sample at a place of the stream."""
    return _mix(hash_labels(DRAW, seed, place))
