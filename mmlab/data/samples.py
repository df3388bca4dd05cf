"""What a stream reads: samples in numbered shards, wherever they come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64


class RawSample(NamedTuple):
    """One sample as it lies in its shard."""

    key: str
    members: dict[str, bytes]
    """Contents by extension, in lower case."""


class SampleSet(ABC):
    """Samples in a fixed order, of which any can be read.

    Pickles, and may be used in forked processes.
    """

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Of the shards, for messages."""

    @property
    @abstractmethod
    def counts(self) -> Int64[np.ndarray, " shards"]:
        """Samples of each shard."""

    @property
    @abstractmethod
    def extensions(self) -> dict[str, int]:
        """How many samples have each extension."""

    @property
    @abstractmethod
    def digest(self) -> str:
        """SHA-256 of all that says which samples these are, and in which order."""

    @property
    @abstractmethod
    def damaged(self) -> tuple[str, ...]:
        """Names of the shards that are cut off or damaged; their complete samples are there."""

    @property
    def sizes(self) -> Int64[np.ndarray, " shards"]:
        """Bytes of each shard that must be fetched before it can be read; 0 where it is local."""
        return np.zeros(len(self.counts), dtype=np.int64)

    @property
    def remote(self) -> bool:
        """Whether any shard must be fetched before it can be read."""
        return bool(self.sizes.any())

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources that the shards are from; empty where there is one without a name."""
        return ()

    def source(self, shard: int) -> int:
        """Number of a shard's source."""
        return 0

    @abstractmethod
    def key(self, shard: int, sample: int) -> str:
        """The key of a sample."""

    @abstractmethod
    def read(self, shard: int, sample: int) -> RawSample:
        """Read one sample.

        Raises:
            BrokenMember: The sample is too large, or the shard ends before it.
        """

    def announce(self, shards: Sequence[int]) -> None:  # noqa: B027  (local files need nothing)
        """Say which shards will be read soon, the first first: remote ones are fetched ahead.

        Replaces what was said before.
        """
