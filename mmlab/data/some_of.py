"""A share of a set of samples, chosen by their keys."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from mmlab.data.samples import RawSample, SampleSet


class SomeOf(SampleSet):
    """The samples whose keys have the smallest hashes: as many as the share says, rounded, one at least.

    Of equal keys the first counts as smaller. Shards keep their numbers, and may be left without samples.
    """

    def __init__(self, samples: SampleSet, *, share: float, seed: int) -> None:
        """Choose.

        Args:
            samples: All of them.
            share: How many of them, above 0 and at most 1.
            seed: Of the hashes.
        """
        self._all = samples
        self._said = f"{share} {seed}"
        places = [(shard, n) for shard, count in enumerate(samples.counts) for n in range(int(count))]
        ranked = sorted(range(len(places)), key=lambda i: (_hash(samples.key(*places[i]), seed), i))
        wanted = min(len(places), max(1, round(share * len(places))))
        self._kept: list[list[int]] = [[] for _ in samples.counts]
        for number in sorted(ranked[:wanted]):
            shard, sample = places[number]
            self._kept[shard].append(sample)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the shards."""
        return self._all.names

    @property
    def counts(self) -> Int64[np.ndarray, " shards"]:
        """Chosen samples of each shard."""
        return np.array([len(kept) for kept in self._kept], dtype=np.int64)

    @property
    def sizes(self) -> Int64[np.ndarray, " shards"]:
        """Bytes to fetch of each shard."""
        return self._all.sizes

    @property
    def extensions(self) -> dict[str, int]:
        """How many of all samples have each extension, chosen or not."""
        return self._all.extensions

    @property
    def digest(self) -> str:
        """SHA-256 over the digest of all and what was chosen of them."""
        return hashlib.sha256(f"{self._all.digest} {self._said}".encode()).hexdigest()

    @property
    def damaged(self) -> tuple[str, ...]:
        """Names of the shards that are cut off or damaged."""
        return self._all.damaged

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources."""
        return self._all.sources

    def source(self, shard: int) -> int:
        """Number of a shard's source."""
        return self._all.source(shard)

    def key(self, shard: int, sample: int) -> str:
        """The key of a chosen sample."""
        return self._all.key(shard, self._kept[shard][sample])

    def read(self, shard: int, sample: int) -> RawSample:
        """Read a chosen sample."""
        return self._all.read(shard, self._kept[shard][sample])

    def announce(self, shards: Sequence[int]) -> None:
        """Hand the word on."""
        self._all.announce(shards)


def _hash(key: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{key}".encode()).digest()
