"""Two sets of samples read as one: what all ways to pair them have in common."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from mmlab.data.samples import SampleSet


class PairedSet(SampleSet):
    """The samples of one set, each with members of another.

    Which samples there are, their order, keys and sources are said by the first set alone. Where both have an
    extension, a subclass says whose holds.
    """

    def __init__(self, first: SampleSet, other: SampleSet) -> None:
        """Take the sets.

        Args:
            first: Says which samples there are.
            other: Where more of their members are.
        """
        self.first = first
        self.other = other

    @property
    def names(self) -> tuple[str, ...]:
        """Of the first set's shards."""
        return self.first.names

    @property
    def counts(self) -> Int64[np.ndarray, " shards"]:
        """Samples of each shard of the first set."""
        return self.first.counts

    @property
    def extensions(self) -> dict[str, int]:
        """How many samples of either set have each extension."""
        return dict(sorted({**self.other.extensions, **self.first.extensions}.items()))

    @property
    def damaged(self) -> tuple[str, ...]:
        """Names of the shards of either set that are cut off or damaged."""
        return (*self.first.damaged, *self.other.damaged)

    @property
    def remote(self) -> bool:
        """Whether either set is remote."""
        return self.first.remote or self.other.remote

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources."""
        return self.first.sources

    def source(self, shard: int) -> int:
        """Number of the source that a shard belongs to."""
        return self.first.source(shard)

    def key(self, shard: int, sample: int) -> str:
        """The key of a sample."""
        return self.first.key(shard, sample)
