"""Samples beside what was made of them: two sets that mirror each other, read as one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from mmlab.data.decode import BrokenMember
from mmlab.data.samples import RawSample, SampleSet


class MirroredSet(SampleSet):
    """The samples of one set, each with the members that the other has in the same place.

    Unlike :class:`mmlab.data.joined.JoinedSet` it looks nothing up by key, so keys may repeat, in shards and
    among the sources of a mixture. What the samples are, and their order, is said by the first set alone.
    """

    def __init__(self, raw: SampleSet, made: SampleSet) -> None:
        """Put sets side by side.

        Args:
            raw: Says which samples there are.
            made: Of as many samples in as many shards.
        """
        assert np.array_equal(raw.counts, made.counts), "sets that do not mirror each other"
        self.raw = raw
        self.made = made

    @property
    def names(self) -> tuple[str, ...]:
        """Of the raw shards."""
        return self.raw.names

    @property
    def counts(self) -> Int64[np.ndarray, " shards"]:
        """Samples of each shard."""
        return self.raw.counts

    @property
    def extensions(self) -> dict[str, int]:
        """How many samples of either set have each extension."""
        return dict(sorted({**self.made.extensions, **self.raw.extensions}.items()))

    @property
    def digest(self) -> str:
        """That of the raw samples."""
        return self.raw.digest

    @property
    def damaged(self) -> tuple[str, ...]:
        """Names of the shards of either set that are cut off or damaged."""
        return (*self.raw.damaged, *self.made.damaged)

    @property
    def remote(self) -> bool:
        """Whether either set is remote."""
        return self.raw.remote or self.made.remote

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources."""
        return self.raw.sources

    def source(self, shard: int) -> int:
        """Number of the source that a shard belongs to."""
        return self.raw.source(shard)

    def key(self, shard: int, sample: int) -> str:
        """The key of a sample."""
        return self.raw.key(shard, sample)

    def read(self, shard: int, sample: int) -> RawSample:
        """Read one sample of both sets."""
        raw, made = self.raw.read(shard, sample), self.made.read(shard, sample)
        if raw.key != made.key:
            raise BrokenMember("features of another sample")
        return RawSample(raw.key, {**raw.members, **made.members})

    def announce(self, shards: Sequence[int]) -> None:
        """Hand the word on."""
        self.raw.announce(shards)
        self.made.announce(shards)
