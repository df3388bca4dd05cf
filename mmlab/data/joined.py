"""Two sets of samples with the same keys, read as one: pictures here, features or sounds there."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt64

from mmlab.assets.cache import cache_dir
from mmlab.data.paired import PairedSet
from mmlab.data.samples import RawSample, SampleSet

_LOOKED_AT = 1024
"""Keys, spread over the set, that are looked up to see whether the keys match at all."""


class JoinedSet(PairedSet):
    """The samples of one set, each with the members that another set has under the same key.

    Order, keys and number of samples are those of the first set. A sample without a partner keeps its own
    members; of several partners all count. Where both have an extension, the first set's holds.

    The other set's keys are found by a sorted table of 16 bytes a sample, kept in the cache directory and
    mapped to memory, so that all processes of a node share it.
    """

    def __init__(self, first: SampleSet, other: SampleSet) -> None:
        """Join, building the table of the other set's keys where the cache has none.

        Args:
            first: Says which samples there are, in which order.
            other: Where more of their members are.

        Raises:
            ValueError: No key of the first set that was looked up is in the other.
        """
        super().__init__(first, other)
        self._table = _table_path(other)
        self._rows: UInt64[np.ndarray, "2 samples"] | None = None
        self._mirrors = np.array_equal(first.counts, other.counts)
        starts = np.concatenate([[0], np.cumsum(first.counts)])
        numbers = np.unique(np.linspace(0, starts[-1] - 1, min(_LOOKED_AT, starts[-1])).astype(np.int64))
        shards = np.searchsorted(starts, numbers, side="right") - 1
        pairs = zip(shards.tolist(), (numbers - starts[shards]).tolist(), strict=True)
        looked_up = [first.key(*pair) for pair in pairs]
        self.matching = sum(len(self._partners(key)) > 0 for key in looked_up) / max(1, len(looked_up))
        if looked_up and self.matching == 0:
            raise ValueError(
                f"nothing to join: of {len(looked_up)} keys looked up (such as {looked_up[0]!r} in "
                f"{first.names[0]}) none is in {other.names[0]}, ...; both sets need the same keys"
            )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_rows": None}

    @property
    def sizes(self) -> Int64[np.ndarray, " shards"]:
        """Bytes to fetch of each shard, with an equal part of the other set's."""
        return self.first.sizes + int(self.other.sizes.sum()) // max(1, len(self.first.counts))

    @property
    def digest(self) -> str:
        """SHA-256 over both digests."""
        return hashlib.sha256(f"{self.first.digest} joined {self.other.digest}".encode()).hexdigest()

    def read(self, shard: int, sample: int) -> RawSample:
        """Read one sample and its partners."""
        raw = self.first.read(shard, sample)
        members: dict[str, bytes] = {}
        for shard_of_other, sample_of_other in self._partners(raw.key):
            found = self.other.read(shard_of_other, sample_of_other)
            if found.key == raw.key:  # or it only has the same hash
                members = {**found.members, **members}
        return RawSample(raw.key, {**members, **raw.members})

    def announce(self, shards: Sequence[int]) -> None:
        """Hand the word on; to the other set where its shards mirror those of the first."""
        self.first.announce(shards)
        if self._mirrors:
            self.other.announce(shards)

    def _partners(self, key: str) -> list[tuple[int, int]]:
        """Shards and samples of the other set whose key has the hash of this one."""
        if self._rows is None:
            self._rows = _open_table(self._table, self.other)
        hashes, places = self._rows
        wanted = np.uint64(_hash(key))
        start = int(np.searchsorted(hashes, wanted, side="left"))
        stop = start
        while stop < len(hashes) and hashes[stop] == wanted:
            stop += 1
        return [divmod(place, 2**32) for place in places[start:stop].tolist()]


def _hash(key: str) -> int:
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _table_path(samples: SampleSet) -> Path:
    return cache_dir() / "joins" / f"{samples.digest[:32]}.npy"


def _open_table(path: Path, samples: SampleSet) -> UInt64[np.ndarray, "2 samples"]:
    """Map the table to memory, built first where there is none or one that does not fit.

    Row 0 holds the hashes, ascending, row 1 shard x 2^32 + sample.
    """
    total = int(samples.counts.sum())
    if not _fits(path, total):
        rows = np.empty((2, total), dtype=np.uint64)
        number = 0
        for shard, count in enumerate(samples.counts.tolist()):
            for sample in range(count):
                rows[:, number] = _hash(samples.key(shard, sample)), (shard << 32) | sample
                number += 1
        _write(path, rows[:, np.lexsort(rows[::-1])])
    table: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return table


def _fits(path: Path, total: int) -> bool:
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        return False
    return bool(found.dtype == np.uint64 and found.shape == (2, total))


def _write(path: Path, rows: UInt64[np.ndarray, "2 samples"]) -> None:
    """Write a table that others see whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".npy")
    try:
        with os.fdopen(handle, "wb") as file:
            np.save(file, rows, allow_pickle=False)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
