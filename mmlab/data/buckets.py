"""Batches of samples of like length, by a table of lengths that is measured once."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int32, Int64

from mmlab.assets.cache import cache_dir
from mmlab.assets.progress import progress
from mmlab.data.decode import BrokenMember
from mmlab.data.reader import Reader
from mmlab.data.samples import SampleSet

_UNMEASURED = -1
_KEPT_EVERY = 2000
"""Samples after which what is measured is kept."""


@dataclass(frozen=True)
class Bucketing:
    """Training batches of samples of like length, and of as many as a budget of tokens or seconds allows."""

    by: Literal["text", "audio", "signal"] = "text"
    """The modality whose length counts."""
    budget: float | None = None
    """Of a global batch, padding included: samples x the longest of them, in tokens of text, seconds of sound
    or steps of a signal. `batch_size` is then the most samples that a batch may have. None: every batch has
    `batch_size` samples."""
    buckets: int = 8
    """How many kinds of batches, by length; each holds about as many samples."""

    def bounds(self, lengths: Int32[np.ndarray, " samples"]) -> Int64[np.ndarray, " buckets"]:
        """The greatest length of each bucket, ascending: quantiles of the lengths, each once."""
        if self.buckets < 1:
            raise ValueError(f"bucketing.buckets {self.buckets}: must be at least 1")
        shares = np.arange(1, self.buckets + 1) / self.buckets
        return np.unique(np.quantile(lengths, shares, method="higher").astype(np.int64))

    def batch_size(self, bound: int, *, reader: Reader, most: int) -> int:
        """Samples of a global batch whose longest has a length.

        Args:
            bound: That length, in steps of the reader.
            reader: Of the modality.
            most: Where the budget allows more, or there is none.

        Raises:
            ValueError: The budget does not hold one such sample.
        """
        if self.budget is None:
            return most
        size = min(most, int(self.budget * reader.steps_per_unit // bound))
        if size < 1:
            raise ValueError(
                f"bucketing.budget {self.budget:g} holds no {self.by} of length "
                f"{bound / reader.steps_per_unit:g}: raise it, or cut longer ones in data.{self.by}"
            )
        return size


def measure_lengths(samples: SampleSet, reader: Reader) -> Int32[np.ndarray, " samples"]:
    """The most steps that a row of each sample can have, at least 1, in stored order.

    Measured in one pass over the samples, and kept in the cache directory for these shards and this reader; a
    pass that was broken off goes on where it was. What lacks the modality or cannot be read has length 1.
    """
    identity = hashlib.sha256(f"{samples.digest} {reader.identity}".encode()).hexdigest()[:32]
    path = cache_dir() / "lengths" / f"{identity}.npy"
    total = int(samples.counts.sum())
    kept = _kept(path, total)
    if kept is not None:
        return kept
    part = path.with_suffix(".part.npy")
    lengths = _kept(part, total)
    lengths = np.full(total, _UNMEASURED, dtype=np.int32) if lengths is None else lengths
    with progress(f"measuring the length of {total} samples", total=total, in_bytes=False) as show:
        number = 0
        for shard, count in enumerate(samples.counts.tolist()):
            for sample in range(count):
                if lengths[number] == _UNMEASURED:
                    lengths[number] = _measure(samples, reader, shard, sample)
                    if number % _KEPT_EVERY == 0:
                        _keep(part, lengths)
                number += 1
                show(number)
    _keep(path, lengths)
    part.unlink(missing_ok=True)
    return lengths


def _measure(samples: SampleSet, reader: Reader, shard: int, sample: int) -> int:
    try:
        return max(1, reader.steps(samples.read(shard, sample).members))
    except BrokenMember:  # counted when its turn comes
        return 1


def _kept(path: Path, total: int) -> Int32[np.ndarray, " samples"] | None:
    try:
        found: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError):
        return None
    return found if found.dtype == np.int32 and found.shape == (total,) else None


def _keep(path: Path, lengths: Int32[np.ndarray, " samples"]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Another process may measure the same: each writes its own file, and the last to end replaces it.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        np.save(file, lengths, allow_pickle=False)
    os.replace(temporary, path)
