"""Random numbers that are hashes: the same for a sample on any rank, in any batch, at any resume."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
HIDDEN, NEGATIVES = range(1, 3)
"""What the numbers are for; keeps equal seeds from meeting in two places."""


def uniform(*labels: Int64[Tensor, "..."] | int) -> Float[Tensor, "..."]:
    """Uniform in [0, 1), by splitmix64 over the labels (Steele, Lea, Flood 2014).

    The words are those of `hash_labels` of :mod:`mmlab.data.randomness`; a number is the upper 24 bits.

    Args:
        labels: Numbers and tensors that can be broadcast; one tensor at least, on whose device it happens.
    """
    state: Tensor | int = 0
    for label in labels:
        state = _mix((label ^ state) + _signed(_GOLDEN))
    assert isinstance(state, Tensor), "labels without a tensor"
    return _shifted(state, 40).float() / 2**24


def _mix(word: Tensor | int) -> Tensor | int:
    """The finaliser of splitmix64; torch's products of int64 wrap as those of unsigned words do."""
    if isinstance(word, int):
        return int(_mix(torch.tensor(_signed(word))))
    word = (word ^ _shifted(word, 30)) * _signed(0xBF58476D1CE4E5B9)
    word = (word ^ _shifted(word, 27)) * _signed(0x94D049BB133111EB)
    return word ^ _shifted(word, 31)


def _shifted(word: Int64[Tensor, "..."], bits: int) -> Int64[Tensor, "..."]:
    """To the right, filled with zeros."""
    shifted: Tensor = (word >> bits) & (2 ** (64 - bits) - 1)
    return shifted


def _signed(word: int) -> int:
    """A word of 64 bits as int64 holds it."""
    word %= 2**64
    return word - 2**64 if word >= 2**63 else word
