"""Fields that a config names, looked for among some samples before a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import NamedTuple

import numpy as np

from mmlab.data.decode import BrokenMember
from mmlab.data.fields import list_fields
from mmlab.data.samples import SampleSet

_LOOKED_AT = 512
"""Samples, spread over the shards of each source, that are searched: what one in a hundred has is missed in
6 of 1,000 cases."""


class Named(NamedTuple):
    """Fields that some sample should have."""

    where: str
    """Setting that names them, below `data`."""
    lacking: Callable[[Mapping[str, bytes]], Sequence[str]]
    """Those that a sample does not have."""


def spread(samples: SampleSet) -> Iterator[Mapping[str, bytes]]:
    """Members of samples that stand for all: evenly spread over each source, the sources by turns.

    Broken ones are left out: they are counted when their turn comes.
    """
    counts = samples.counts
    sources = np.zeros(len(counts), dtype=np.int64)
    if len(samples.sources) > 1:
        sources = np.array([samples.source(shard) for shard in range(len(counts))])
    for turn in zip_longest(*(_places(counts, sources == source) for source in np.unique(sources))):
        for place in turn:
            if place is None:
                continue
            try:
                yield samples.read(*place).members
            except BrokenMember:
                continue


def _places(counts: np.ndarray, of_source: np.ndarray) -> list[tuple[int, int]]:
    """Shard and sample of those that are looked at, of one source."""
    shards = np.flatnonzero(of_source)
    ends = np.cumsum(counts[shards])
    if ends[-1] == 0:
        return []
    numbers = np.unique(np.linspace(0, ends[-1] - 1, _LOOKED_AT).astype(np.int64))
    at = np.searchsorted(ends, numbers, side="right")
    return [
        (int(shards[k]), int(number - ends[k] + counts[shards[k]]))
        for k, number in zip(at, numbers, strict=True)
    ]


def check_named(named: Sequence[Named], sets: Mapping[str, SampleSet]) -> None:
    """Look for fields in sets of samples, until each is found in one of them.

    Args:
        named: What is looked for.
        sets: Where, by the name of the split.

    Raises:
        ValueError: Something is in no sample that was looked at.
    """
    waiting: dict[int, list[set[str]]] = {number: [] for number in range(len(named))}
    first: Mapping[str, bytes] | None = None
    for samples in sets.values():
        for members in spread(samples) if waiting else ():
            first = members if first is None else first
            for number in list(waiting):
                try:
                    lacking = set(named[number].lacking(members))
                except BrokenMember:  # counted when its turn comes
                    continue
                if lacking:
                    waiting[number].append(lacking)
                else:
                    del waiting[number]
            if not waiting:
                return
    for number, lacks in waiting.items():
        if lacks:
            assert first is not None
            never = sorted(set.intersection(*lacks))
            what = never[0] if never else f"{' and '.join(sorted(set.union(*lacks)))} together"
            raise ValueError(
                f"no sample looked at in the {' and '.join(sets)} shards has {what}, named in "
                f"data.{named[number].where}; the first has {list_fields(first)}: correct the name, or leave "
                "it out"
            )
