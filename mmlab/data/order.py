"""The order of samples: pure arithmetic from seed, sample counts, batch size and lanes, nothing else.

No state, no torch, no generator whose numbers could change between releases: place p of global batch t is
the same sample in every process, whatever the number of ranks, nodes and workers.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from mmlab.data.lanes import WINDOW, LaneDraws, Lanes, Unit, check_divides, check_shares


class Places(NamedTuple):
    """Which samples fill one rank's share of a global batch."""

    shard: Int64[np.ndarray, " samples"]
    """Number of the shard; -1: padding."""
    sample: Int64[np.ndarray, " samples"]
    """Number of the sample inside its shard; -1: padding."""
    place: Int64[np.ndarray, " samples"]
    """Step x global batch size + offset in the global batch."""


class Order(ABC):
    """What a stream needs to know: which samples stand where."""

    samples: int
    """Of all shards."""
    batch_size: int
    """Samples of a global batch, over all ranks."""

    @property
    @abstractmethod
    def steps(self) -> int:
        """Global batches in one pass over the samples."""

    @abstractmethod
    def places(self, step: int, *, rank: int = 0, ranks: int = 1) -> Places:
        """One rank's share of global batch `step`; the shares, in rank order, are the batch.

        A pure function of the step: what an order keeps between calls only saves time.
        """

    @property
    def settings(self) -> dict[str, int | str]:
        """All that decides the order, beside the contents of the shards."""
        return {"samples": self.samples, "batch_size": self.batch_size}

    @abstractmethod
    def check(self, ranks: int, workers: int) -> None:
        """Raise ValueError, with the nearest valid values, where batches cannot be dealt so.

        Args:
            ranks: Processes that share each batch.
            workers: Loader processes of each; 0 (the rank reads by itself) counts as 1.
        """


class TrainingOrder(Order):
    """An endless stream of global batches.

    Step t takes B / P samples from each of the P lanes of group t mod G; rank r of R owns lanes r P/R to
    (r + 1) P/R of each group. Worker w of W builds the steps t = w mod W, so it only ever touches its own
    groups.
    """

    def __init__(
        self,
        counts: Sequence[int] | Int64[np.ndarray, " shards"],
        *,
        batch_size: int,
        seed: int,
        lanes: Lanes | None = None,
        unit: Unit = "auto",
        window: int = WINDOW,
    ) -> None:
        """Plan.

        Args:
            counts: Samples of each shard.
            batch_size: Global batch size B, over all ranks.
            seed: Seed of every permutation.
            lanes: None chooses by sample count and batch size.
            unit: See :class:`mmlab.data.lanes.LaneDraws`.
            window: Samples to permute together inside a lane, at least 1.
        """
        counts = np.asarray(counts, dtype=np.int64)
        if batch_size < 1:
            raise ValueError(f"batch size {batch_size} must be at least 1")
        self.samples = int(counts.sum())
        self.batch_size = batch_size
        self.lanes = Lanes.choose(self.samples, batch_size) if lanes is None else lanes
        check_divides(self.lanes.ranks, "virtual ranks (lanes.ranks)", batch_size, "batch_size")
        self.draws = LaneDraws(counts, seed=seed, lanes=self.lanes, unit=unit, window=window)

    @property
    def steps(self) -> int:
        """Global batches in what is called an epoch: samples / batch size, rounded, at least 1."""
        return max(1, round(self.samples / self.batch_size))

    @property
    def settings(self) -> dict[str, int | str]:
        """All that decides the order, beside the contents of the shards."""
        return {
            "samples": self.samples,
            "batch_size": self.batch_size,
            "seed": self.draws.seed,
            "lanes": self.lanes.text,
            "unit": self.draws.unit,
            "window": self.draws.window,
        }

    def check(self, ranks: int, workers: int) -> None:
        """Raise ValueError, with the nearest valid values, where ranks or workers do not divide the lanes."""
        self.lanes.check(ranks, workers, batch_size=self.batch_size)

    def places(self, step: int, *, rank: int = 0, ranks: int = 1) -> Places:
        """One rank's share of global batch `step`; see :meth:`Order.places`."""
        lanes = self.lanes.of(step, rank=rank, ranks=ranks)
        per_lane = self.batch_size // self.lanes.ranks
        numbers = step // self.lanes.groups * per_lane + np.arange(per_lane)
        shard, sample = self.draws.draw(np.repeat(lanes, per_lane), np.tile(numbers, len(lanes)))
        first = step * self.batch_size + rank * len(shard)
        return Places(shard, sample, np.arange(first, first + len(shard)))


class EvaluationOrder(Order):
    """Every sample exactly once, in stored order; the last batch is padded."""

    def __init__(self, counts: Sequence[int] | Int64[np.ndarray, " shards"], *, batch_size: int) -> None:
        """Plan.

        Args:
            counts: Samples of each shard.
            batch_size: Global batch size, over all ranks.
        """
        if batch_size < 1:
            raise ValueError(f"batch size {batch_size} must be at least 1")
        self.starts = np.concatenate([[0], np.cumsum(np.asarray(counts, dtype=np.int64))])
        self.samples = int(self.starts[-1])
        self.batch_size = batch_size

    @property
    def steps(self) -> int:
        """Global batches that hold every sample once."""
        return math.ceil(self.samples / self.batch_size)

    def check(self, ranks: int, workers: int) -> None:
        """Raise ValueError, with the nearest valid values, where ranks do not divide the batch size."""
        check_shares(self.batch_size, ranks, f"batch size {self.batch_size} of evaluation")

    def places(self, step: int, *, rank: int = 0, ranks: int = 1) -> Places:
        """One rank's slice of global batch `step`; shard and sample are -1 at padding."""
        share = self.batch_size // ranks
        first = step * self.batch_size + rank * share
        place = np.arange(first, first + share)
        shard = np.searchsorted(self.starts, place, side="right") - 1
        real = place < self.samples
        sample = place - self.starts[np.where(real, shard, 0)]
        return Places(np.where(real, shard, -1), np.where(real, sample, -1), place)
