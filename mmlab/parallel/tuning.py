"""The search for the samples that a model can take at once, whatever tries them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

_CLOSE = 1.1
"""Sizes whose ratio is less are not told apart."""
_AS_FAST = 0.98
"""Of the highest speed: less memory is worth more than the rest."""


class Trial(NamedTuple):
    """What training steps took whose batch was run in parts."""

    samples: int
    """Of a part."""
    memory: int
    """Bytes at most."""
    speed: float
    """Samples a second."""


def search(total: int, attempt: Callable[[int], Trial | None]) -> dict[int, Trial | None]:
    """Try parts of a batch until the largest that fits is known, and whether smaller ones are as fast.

    The batch is halved until a part fits, then the number of parts is lowered by bisection; parts are of
    equal size. If the batch fits whole nothing else is tried: parts cost a second forward pass.

    Args:
        total: Samples of the batch, at least 1.
        attempt: Trains with parts of so many samples; None: they do not fit.

    Returns:
        What was tried, by samples of a part.
    """
    tried: dict[int, Trial | None] = {}

    def fits(parts: int) -> bool:
        samples = math.ceil(total / parts)
        if samples not in tried:
            tried[samples] = attempt(samples)
        return tried[samples] is not None

    low, high = 0, 1
    while not fits(high):
        if high >= total:
            return tried
        low, high = high, min(2 * high, total)
    while high - low > 1 and low > 0 and high / low > _CLOSE:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    speed = 0.0
    while 1 < high < total and (trial := tried[math.ceil(total / high)]) is not None and trial.speed >= speed:
        speed, high = trial.speed, min(2 * high, total)
        fits(high)
    return tried


def best(tried: dict[int, Trial | None]) -> Trial | None:
    """The smallest part that is as fast as any; None where nothing fits."""
    fitting = [trial for trial in tried.values() if trial is not None]
    fastest = max((trial.speed for trial in fitting), default=0.0)
    return min(
        (trial for trial in fitting if trial.speed >= _AS_FAST * fastest),
        key=lambda trial: trial.samples,
        default=None,
    )
