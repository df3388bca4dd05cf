"""Samples beside what was made of them: two sets that mirror each other, read as one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmlab.data.decode import BrokenMember
from mmlab.data.paired import PairedSet
from mmlab.data.samples import RawSample, SampleSet


class MirroredSet(PairedSet):
    """Samples, each with the members that another set has in the same place.

    Unlike :class:`mmlab.data.joined.JoinedSet` it looks nothing up by key, so keys may repeat, in shards and
    among the sources of a mixture.
    """

    def __init__(self, raw: SampleSet, made: SampleSet) -> None:
        """Put sets side by side.

        Args:
            raw: Says which samples there are.
            made: Of as many samples in as many shards.
        """
        assert np.array_equal(raw.counts, made.counts), "sets that do not mirror each other"
        super().__init__(raw, made)

    @property
    def digest(self) -> str:
        """That of the raw samples: what was made of them does not change which they are."""
        return self.first.digest

    def read(self, shard: int, sample: int) -> RawSample:
        """Read one sample of both sets."""
        raw, made = self.first.read(shard, sample), self.other.read(shard, sample)
        if raw.key != made.key:
            raise BrokenMember("features of another sample")
        return RawSample(raw.key, {**raw.members, **made.members})

    def announce(self, shards: Sequence[int]) -> None:
        """Hand the word on."""
        self.first.announce(shards)
        self.other.announce(shards)
