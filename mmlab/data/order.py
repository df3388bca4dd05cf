"""The order of samples: pure arithmetic from seed, sample counts, batch size and lanes, nothing else.

No state, no torch, no generator whose numbers could change between releases: place p of global batch t is
the same sample in every process, whatever the number of ranks, nodes and workers.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Int64, UInt, UInt64

WINDOW = 8192
"""Samples that are permuted together inside a lane, where whole shards are permuted."""
PERFECT = 2**20
"""Up to this many samples, `unit="auto"` permutes samples instead of shards."""

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
# What random words are for; keeps equal seeds from meeting in two places.
_SHARDS, _SAMPLES, _SHIFT, _WINDOW, _DRAW = range(1, 6)

_Word = TypeVar("_Word", int, np.ndarray)


def _mix(word: _Word) -> _Word:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014): a bijection of 64-bit words."""
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _MASK
    word = word ^ (word >> 31)
    return word


def _state(*labels: int) -> int:
    state = 0
    for label in labels:
        state = _mix(((state ^ (label & _MASK)) + _GOLDEN) & _MASK)
    return state


def random_words(count: int, *labels: int) -> UInt64[np.ndarray, " count"]:
    """Distinct random 64-bit words: splitmix64 from a state that is a hash of the labels."""
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
    return _mix(steps + np.uint64(_state(*labels)))


def permutation(count: int, *labels: int) -> Int64[np.ndarray, " count"]:
    """A random order of 0 .. count - 1 that depends on the labels alone."""
    order: np.ndarray = np.argsort(random_words(count, *labels), kind="stable")
    return order


def draw_seed(seed: int, place: int) -> int:
    """The seed of the random numbers (`random.Random`) of the sample at a place of the stream."""
    return _mix(_state(_DRAW, seed, place))


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

    @abstractmethod
    def check(self, ranks: int, workers: int) -> None:
        """Raise ValueError, with the nearest valid values, where batches cannot be dealt so.

        Args:
            ranks: Processes that share each batch.
            workers: Loader processes of each; 0 (the rank reads by itself) counts as 1.
        """


@dataclass(frozen=True)
class Lanes:
    """How an epoch is cut: `ranks` x `groups` lanes of equal length.

    A run may have any number of ranks that divides `ranks`, and of workers a rank that divides `groups`.
    """

    ranks: int
    """Virtual ranks P; P must divide the global batch size."""
    groups: int
    """Lane groups G; step t draws from group t mod G."""

    def __post_init__(self) -> None:
        if self.ranks < 1 or self.groups < 1:
            raise ValueError(f"lanes: ranks {self.ranks} and groups {self.groups} must be at least 1")

    @property
    def count(self) -> int:
        """Lanes in all: P x G."""
        return self.ranks * self.groups

    @classmethod
    def choose(cls, samples: int, batch_size: int) -> Lanes:
        """Lanes that suit many numbers of ranks and workers and lose little to rounding.

        Depends on sample count and batch size alone, never on the machine, so that the order stays the same
        when a run moves to another number of ranks or workers.

        Args:
            samples: Samples of an epoch; at most one lane to 32 of them.
            batch_size: Global batch size; P is the divisor of it, up to a bound, that most numbers of ranks
                divide.
        """
        limit = max(1, samples // 32)
        groups = next(g for g in (8, 4, 2, 1) if g * g <= limit)
        bound = min(limit // groups, max(64, batch_size // 32))
        ranks = max(_divisors(batch_size, bound), key=lambda p: (len(_divisors(p, p)), p & -p, p))
        return cls(ranks, groups)


def _divisors(number: int, bound: int) -> list[int]:
    return [d for d in range(1, min(number, bound) + 1) if number % d == 0]


def _check_divides(value: int, what: str, number: int, of: str) -> None:
    """Say which nearby values divide a number where one does not."""
    valid = _divisors(number, number)
    if value in valid:
        return
    near = {max(d for d in valid if d < max(2, value)), min((d for d in valid if d > value), default=number)}
    raise ValueError(
        f"{value} {what}: must divide {of} = {number}; the nearest valid "
        f"{'value is' if len(near) == 1 else 'values are'} {' and '.join(map(str, sorted(near)))}"
    )


class _Epoch(NamedTuple):
    """The plan of one epoch: its samples in one row, from which the lanes are cut."""

    shards: Int64[np.ndarray, " shards"]
    starts: Int64[np.ndarray, " shards_and_one"]
    """Where each shard of `shards` starts in the row."""
    samples: Int64[np.ndarray, " samples"] | None
    """Place in the row of each sample drawn, where samples are permuted."""
    shift: int
    """Where lane 0 starts in the row: what is lost to rounding changes from epoch to epoch."""

    def locate(self, positions: Int64[np.ndarray, "*any"]) -> tuple[np.ndarray, np.ndarray]:
        """Shard and sample at positions of the epoch."""
        rows = (positions + self.shift) % self.starts[-1] if self.samples is None else self.samples[positions]
        found = np.searchsorted(self.starts, rows, side="right") - 1
        return self.shards[found], rows - self.starts[found]


class TrainingOrder(Order):
    """An endless stream of global batches; every epoch is another permutation.

    Each epoch is cut into P x G lanes of n = samples // (P x G) samples. Step t takes B / P samples from
    each of the P lanes of group t mod G; draw q of a lane is sample q mod n of its epoch q // n, so lanes go
    on without a gap. Rank r of R owns lanes r P/R to (r + 1) P/R of each group, and worker w of W builds the
    steps t = w mod W: it only ever touches its own groups.
    """

    def __init__(
        self,
        counts: Sequence[int] | Int64[np.ndarray, " shards"],
        *,
        batch_size: int,
        seed: int,
        lanes: Lanes | None = None,
        unit: Literal["auto", "sample", "shard"] = "auto",
        window: int = WINDOW,
    ) -> None:
        """Plan.

        Args:
            counts: Samples of each shard.
            batch_size: Global batch size B, over all ranks.
            seed: Seed of every permutation.
            lanes: None chooses by sample count and batch size.
            unit: `sample` permutes all samples (a perfect shuffle); `shard` permutes whole shards and, inside
                a lane, windows of samples, so that a rank reads few shards at a time; `auto` permutes samples
                up to :data:`PERFECT` of them.
            window: Samples to permute together inside a lane, at least 1.
        """
        self.counts = np.asarray(counts, dtype=np.int64)
        self.samples = int(self.counts.sum())
        self.batch_size = batch_size
        self.seed = seed
        if batch_size < 1 or window < 1:
            raise ValueError(f"batch size {batch_size} and window {window} must be at least 1")
        self.lanes = Lanes.choose(self.samples, batch_size) if lanes is None else lanes
        _check_divides(self.lanes.ranks, "virtual ranks (lanes.ranks)", batch_size, "batch_size")
        self.lane_samples = self.samples // self.lanes.count
        if self.lane_samples == 0:
            raise ValueError(
                f"{self.samples} samples cannot fill {self.lanes.ranks} x {self.lanes.groups} lanes with one "
                "each: use fewer lanes, or leave `lanes` out to have them chosen"
            )
        if unit == "auto":
            unit = "sample" if self.samples <= PERFECT else "shard"
        self.unit = unit
        # Windows of one size rather than full ones and a short rest, which would hardly be shuffled.
        self.window = math.ceil(self.lane_samples / math.ceil(self.lane_samples / window))
        self._epochs: dict[int, _Epoch] = {}
        self._windows: dict[int, tuple[int, int, np.ndarray]] = {}

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
            "seed": self.seed,
            "lanes": f"{self.lanes.ranks} x {self.lanes.groups}",
            "unit": self.unit,
            "window": self.window,
        }

    def check(self, ranks: int, workers: int) -> None:
        """Raise ValueError, with the nearest valid values, where ranks or workers do not divide the lanes."""
        _check_divides(ranks, "ranks", self.lanes.ranks, "lanes.ranks")
        _check_divides(max(1, workers), "workers (num_workers)", self.lanes.groups, "lanes.groups")

    def places(self, step: int, *, rank: int = 0, ranks: int = 1) -> Places:
        """One rank's share of global batch `step`; see :meth:`Order.places`."""
        share = self.lanes.ranks // ranks
        per_lane = self.batch_size // self.lanes.ranks
        turn, group = divmod(step, self.lanes.groups)
        lanes = np.arange(rank * share, (rank + 1) * share) * self.lanes.groups + group
        epochs, offsets = np.divmod(turn * per_lane + np.arange(per_lane), self.lane_samples)
        shard = np.empty((share, per_lane), dtype=np.int64)
        sample = np.empty_like(shard)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            now = epochs == epoch
            rows = [lane * self.lane_samples + self._inside(int(lane), epoch, offsets[now]) for lane in lanes]
            shard[:, now], sample[:, now] = self._epoch(epoch).locate(np.stack(rows))
        first = step * self.batch_size + rank * share * per_lane
        return Places(shard.ravel(), sample.ravel(), np.arange(first, first + share * per_lane))

    def _epoch(self, epoch: int) -> _Epoch:
        plan = self._epochs.get(epoch)
        if plan is None:
            shards = np.arange(len(self.counts))
            samples, shift = None, 0
            if self.unit == "sample":
                samples = permutation(self.samples, _SAMPLES, self.seed, epoch)
            else:
                shards = permutation(len(self.counts), _SHARDS, self.seed, epoch)
                shift = _state(_SHIFT, self.seed, epoch) % self.samples
            starts = np.concatenate([[0], np.cumsum(self.counts[shards])])
            plan = _Epoch(shards, starts, samples, shift)
            # A batch can lie across two epochs; older plans are not needed again.
            self._epochs = {e: p for e, p in self._epochs.items() if abs(e - epoch) == 1} | {epoch: plan}
        return plan

    def _inside(
        self, lane: int, epoch: int, offsets: Int64[np.ndarray, " draws"]
    ) -> Int64[np.ndarray, " draws"]:
        """Permute offsets of a lane inside their windows."""
        if self.unit == "sample":
            return offsets
        windows, inside = np.divmod(offsets, self.window)
        out = np.empty_like(offsets)
        for window in range(int(windows[0]), int(windows[-1]) + 1):
            now = windows == window
            out[now] = window * self.window + self._window(lane, epoch, window)[inside[now]].astype(np.int64)
        return out

    def _window(self, lane: int, epoch: int, window: int) -> UInt[np.ndarray, " samples"]:
        kept = self._windows.get(lane)
        if kept is None or kept[:2] != (epoch, window):
            size = min(self.window, self.lane_samples - window * self.window)
            # One window a lane is kept, as narrow as it can be: a rank may own thousands of lanes.
            order = permutation(size, _WINDOW, self.seed, epoch, lane, window)
            kept = (epoch, window, order.astype(np.min_scalar_type(size)))
            self._windows[lane] = kept
        return kept[2]


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
        if self.batch_size % ranks != 0:
            below = self.batch_size // ranks * ranks
            near = " and ".join(str(b) for b in (below, below + ranks) if b > 0)
            raise ValueError(
                f"batch size {self.batch_size} of evaluation: must be divisible by the {ranks} ranks; the "
                f"nearest valid values are {near}"
            )

    def places(self, step: int, *, rank: int = 0, ranks: int = 1) -> Places:
        """One rank's slice of global batch `step`; shard and sample are -1 at padding."""
        share = self.batch_size // ranks
        first = step * self.batch_size + rank * share
        place = np.arange(first, first + share)
        shard = np.searchsorted(self.starts, place, side="right") - 1
        real = place < self.samples
        sample = place - self.starts[np.where(real, shard, 0)]
        return Places(np.where(real, shard, -1), np.where(real, sample, -1), place)
