"""How long captions are: percentiles and bins of lengths, for reports."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

_BARS = 40


class Bin(NamedTuple):
    """Lengths from `first` to `last`, both included."""

    first: int
    last: int
    captions: int


def added(spreads: Iterable[Mapping[int, int]]) -> dict[int, int]:
    """Several spreads as one."""
    total: Counter[int] = Counter()
    for spread in spreads:
        total.update(spread)
    return dict(sorted(total.items()))


def percentile(spread: Mapping[int, int], percent: int) -> int:
    """The least length that this part of all, at least, does not exceed; the spread must not be empty."""
    wanted = sum(spread.values()) * percent / 100
    reached = 0
    for length in sorted(spread):
        reached += spread[length]
        if reached >= wanted and reached > 0:
            return length
    raise AssertionError("an empty spread has no percentiles")


def bins(spread: Mapping[int, int], *, most: int = 12) -> list[Bin]:
    """Bins of a width of 1, 2 or 5 times a power of ten; the last, from the 99th percentile on, is wider."""
    if not spread:
        return []
    low, high = min(spread), percentile(spread, 99)
    width = next(w for e in range(20) for w in (10**e, 2 * 10**e, 5 * 10**e) if (high - low) // w + 2 <= most)
    start = low // width * width
    edges = list(range(start, high + 1, width))
    found = [Bin(edge, edge + width - 1, 0) for edge in edges]
    found[-1] = found[-1]._replace(last=max(found[-1].last, max(spread)))
    counts = Counter[int]()
    for length, count in spread.items():
        counts[min((length - start) // width, len(edges) - 1)] += count
    return [part._replace(captions=counts[number]) for number, part in enumerate(found)]


def drawn(spread: Mapping[int, int]) -> list[str]:
    """The bins as lines of text, one bar each."""
    parts = bins(spread)
    most = max((part.captions for part in parts), default=1)
    labels = [f"{p.first}" if p.first == p.last else f"{p.first}-{p.last}" for p in parts]
    width = max(map(len, labels), default=0)
    return [
        f"{label:>{width}} {'█' * math.ceil(_BARS * part.captions / most):{_BARS}} {part.captions}"
        for label, part in zip(labels, parts, strict=True)
    ]
