"""Several sets of samples, one behind the other: the sources of a mixture."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate

import numpy as np
from jaxtyping import Int64

from mmlab.data.samples import RawSample, SampleSet


class ChainedSet(SampleSet):
    """Sets of samples that are numbered as one; the shards of each follow those of the one before."""

    def __init__(self, parts: Mapping[str, SampleSet], *, sources: Sequence[str]) -> None:
        """Put sets together.

        Args:
            parts: At least one, by the name of their source.
            sources: Names of all sources of the run; some may have no part in this split.
        """
        self.parts = dict(parts)
        self._parts = tuple(parts.values())
        self._sources = tuple(sources)
        self._numbers = tuple(self._sources.index(name) for name in parts)
        self._starts = [0, *accumulate(len(part.counts) for part in self._parts)]

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources."""
        return self._sources

    def source(self, shard: int) -> int:
        """Number of the source that a shard belongs to."""
        return self._numbers[self._part(shard)]

    def _part(self, shard: int) -> int:
        return bisect_right(self._starts, shard) - 1

    @property
    def names(self) -> tuple[str, ...]:
        """Of all shards."""
        return tuple(name for part in self._parts for name in part.names)

    @property
    def counts(self) -> Int64[np.ndarray, " shards"]:
        """Samples of each shard."""
        return np.concatenate([part.counts for part in self._parts])

    @property
    def sizes(self) -> Int64[np.ndarray, " shards"]:
        """Bytes to fetch of each shard."""
        return np.concatenate([part.sizes for part in self._parts])

    @property
    def extensions(self) -> dict[str, int]:
        """How many samples of all sources have each extension."""
        total: dict[str, int] = {}
        for part in self._parts:
            for extension, count in part.extensions.items():
                total[extension] = total.get(extension, 0) + count
        return dict(sorted(total.items()))

    @property
    def digest(self) -> str:
        """SHA-256 over names and digests of the sources."""
        lines = [f"{name} {part.digest}" for name, part in self.parts.items()]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @property
    def damaged(self) -> tuple[str, ...]:
        """Names of the shards that are cut off or damaged."""
        return tuple(name for part in self._parts for name in part.damaged)

    @property
    def remote(self) -> bool:
        """Whether any source is remote."""
        return any(part.remote for part in self._parts)

    def key(self, shard: int, sample: int) -> str:
        """The key of a sample."""
        part = self._part(shard)
        return self._parts[part].key(shard - self._starts[part], sample)

    def read(self, shard: int, sample: int) -> RawSample:
        """Read one sample."""
        part = self._part(shard)
        return self._parts[part].read(shard - self._starts[part], sample)

    def announce(self, shards: Sequence[int]) -> None:
        """Hand the word on, in order."""
        for number, part in enumerate(self._parts):
            first = self._starts[number]
            part.announce([shard - first for shard in shards if self._part(shard) == number])
