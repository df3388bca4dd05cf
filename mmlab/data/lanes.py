"""Lanes: an endless stream of samples in rows of equal length, each of which one reader follows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt

from mmlab.data.randomness import SAMPLES, SHARDS, SHIFT, WINDOWS, hash_labels, permutation

WINDOW = 8192
"""Samples that are permuted together inside a lane, where whole shards are permuted."""
PERFECT = 2**20
"""Up to this many samples, `unit="auto"` permutes samples instead of shards."""
Unit = Literal["auto", "sample", "shard"]


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

    def check(self, ranks: int, workers: int, *, batch_size: int) -> None:
        """Raise ValueError, with the nearest valid values, where ranks or workers do not fit.

        Args:
            ranks: They divide the batch size and the lanes.
            workers: Of each rank; they divide the lane groups.
            batch_size: Global batch size; of several, the smallest.
        """
        check_shares(batch_size, ranks, f"batch size {batch_size}")
        check_divides(ranks, "ranks", self.ranks, "lanes.ranks")
        check_divides(max(1, workers), "workers (num_workers)", self.groups, "lanes.groups")

    def of(self, step: int, *, rank: int, ranks: int) -> Int64[np.ndarray, " lanes"]:
        """Lanes that one rank draws from at a step."""
        share = self.ranks // ranks
        return np.arange(rank * share, (rank + 1) * share) * self.groups + step % self.groups

    @classmethod
    def choose(cls, samples: int, batch_size: int, *, ranks: int = 1) -> Lanes:
        """Lanes that suit many numbers of ranks and workers and lose little to rounding.

        Depends on sample count and batch size alone wherever that suits the ranks, so that the order stays
        the same when a run moves to another number of ranks or workers.

        Args:
            samples: Samples of an epoch; at most one lane to 32 of them.
            batch_size: Global batch size; P is the divisor of it, up to a bound, that most numbers of ranks
                divide.
            ranks: That the run begins with. Where they do not divide P, but the batch size, P is their
                number, beyond any bound.
        """
        limit = max(1, samples // 32)
        groups = next(g for g in (8, 4, 2, 1) if g * g <= limit)
        bound = min(limit // groups, max(64, batch_size // 32))
        virtual = max(_divisors(batch_size, bound), key=lambda p: (len(_divisors(p, p)), p & -p, p))
        if virtual % ranks != 0 and batch_size % ranks == 0:
            virtual = ranks
        return cls(virtual, groups)

    @classmethod
    def read(cls, text: str) -> Lanes:
        """What :attr:`text` says.

        Raises:
            ValueError: It is another text.
        """
        ranks, groups = map(int, text.split(" x "))
        return cls(ranks, groups)

    @property
    def text(self) -> str:
        """`8 x 2`, as checkpoints say it."""
        return f"{self.ranks} x {self.groups}"


def _divisors(number: int, bound: int) -> list[int]:
    return [d for d in range(1, min(number, bound) + 1) if number % d == 0]


def check_shares(batch_size: int, ranks: int, what: str) -> None:
    """Say which nearby batch sizes can be shared among ranks where one cannot."""
    if batch_size % ranks == 0:
        return
    below = batch_size // ranks * ranks
    near = [str(size) for size in (below, below + ranks) if size > 0]
    raise ValueError(
        f"{what}: must be divisible by the {ranks} ranks; the nearest valid "
        f"{'value is' if len(near) == 1 else 'values are'} {' and '.join(near)}"
    )


def check_divides(value: int, what: str, number: int, of: str) -> None:
    """Say which nearby values divide a number where one does not."""
    valid = _divisors(number, number)
    if value in valid:
        return
    near = {max(d for d in valid if d < max(2, value)), min((d for d in valid if d > value), default=number)}
    raise ValueError(
        f"{value} {what}: must divide {of} = {number}; the nearest valid "
        f"{'value is' if len(near) == 1 else 'values are'} {' and '.join(map(str, sorted(near)))}"
    )


class Subset(NamedTuple):
    """Some of the samples of shards."""

    numbers: Int64[np.ndarray, " chosen"]
    """Ascending, counted over all shards."""
    starts: Int64[np.ndarray, " shards_and_one"]
    """Number of the first sample of each shard."""

    @property
    def counts(self) -> Int64[np.ndarray, " shards"]:
        """How many of each shard were chosen."""
        return np.diff(np.searchsorted(self.numbers, self.starts))

    def sample(
        self, shard: Int64[np.ndarray, " *any"], chosen: Int64[np.ndarray, " *any"]
    ) -> Int64[np.ndarray, " *any"]:
        """The number in its shard of the n-th chosen sample of a shard."""
        first = np.searchsorted(self.numbers, self.starts[shard])
        sample: np.ndarray = self.numbers[first + chosen] - self.starts[shard]
        return sample


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


class LaneDraws:
    """The samples of some shards as endless lanes; every epoch is another permutation.

    Each epoch is cut into lanes of n = samples // lanes samples; draw q of a lane is sample q mod n of its
    epoch q // n, so lanes go on without a gap.
    """

    def __init__(
        self,
        counts: Sequence[int] | Int64[np.ndarray, " shards"] | Subset,
        *,
        seed: int,
        lanes: Lanes,
        unit: Unit = "auto",
        window: int = WINDOW,
        copies: int = 1,
    ) -> None:
        """Plan.

        Args:
            counts: Samples of each shard, or which samples.
            seed: Seed of every permutation.
            lanes: How an epoch is cut.
            unit: `sample` permutes all samples (a perfect shuffle); `shard` permutes whole shards and, inside
                a lane, windows of samples, so that a rank reads few shards at a time; `auto` permutes samples
                up to :data:`PERFECT` of them.
            window: Samples to permute together inside a lane, at least 1.
            copies: How often an epoch holds each sample: so few samples as do not fill the lanes can.

        Raises:
            ValueError: A window below 1, or fewer samples than lanes.
        """
        if window < 1:
            raise ValueError(f"window {window} must be at least 1")
        self.subset = counts if isinstance(counts, Subset) else None
        own = counts.counts if isinstance(counts, Subset) else np.asarray(counts, dtype=np.int64)
        self.samples = int(own.sum())
        self.counts = np.tile(own, copies)
        self.shards = len(own)
        self.seed = seed
        self.copies = copies
        self.lane_samples = self.samples * copies // lanes.count
        if self.lane_samples == 0:
            raise ValueError(
                f"{self.samples} samples cannot fill {lanes.ranks} x {lanes.groups} lanes with one each: use "
                "fewer lanes, or leave `lanes` out to have them chosen"
            )
        if unit == "auto":
            unit = "sample" if self.samples <= PERFECT else "shard"
        self.unit = unit
        # Windows of one size rather than full ones and a short rest, which would hardly be shuffled.
        self.window = math.ceil(self.lane_samples / math.ceil(self.lane_samples / window))
        self._epochs: dict[int, _Epoch] = {}
        self._windows: dict[int, tuple[int, int, np.ndarray]] = {}

    def draw(
        self, lane: Int64[np.ndarray, " draws"], number: Int64[np.ndarray, " draws"]
    ) -> tuple[Int64[np.ndarray, " draws"], Int64[np.ndarray, " draws"]]:
        """Shard and sample of some draws.

        Args:
            lane: The lane of each, ascending.
            number: How many that lane drew before.
        """
        epochs, offsets = np.divmod(number, self.lane_samples)
        shard, sample = np.empty_like(number), np.empty_like(number)
        for epoch in np.unique(epochs).tolist():
            now = epochs == epoch
            inside = self._inside(lane[now], epoch, offsets[now])
            shard[now], sample[now] = self._epoch(epoch).locate(lane[now] * self.lane_samples + inside)
        shard %= self.shards
        return shard, sample if self.subset is None else self.subset.sample(shard, sample)

    def _epoch(self, epoch: int) -> _Epoch:
        plan = self._epochs.get(epoch)
        if plan is None:
            shards = np.arange(len(self.counts))
            total = self.samples * self.copies
            samples, shift = None, 0
            if self.unit == "sample":
                samples = permutation(total, SAMPLES, self.seed, epoch)
            else:
                shards = permutation(len(self.counts), SHARDS, self.seed, epoch)
                shift = hash_labels(SHIFT, self.seed, epoch) % total
            starts = np.concatenate([[0], np.cumsum(self.counts[shards])])
            plan = _Epoch(shards, starts, samples, shift)
            # A batch can lie across two epochs; older plans are not needed again.
            self._epochs = {e: p for e, p in self._epochs.items() if abs(e - epoch) == 1} | {epoch: plan}
        return plan

    def _inside(
        self, lane: Int64[np.ndarray, " draws"], epoch: int, offsets: Int64[np.ndarray, " draws"]
    ) -> Int64[np.ndarray, " draws"]:
        """Permute offsets of lanes inside their windows."""
        if self.unit == "sample":
            return offsets
        windows, inside = np.divmod(offsets, self.window)
        out = np.empty_like(offsets)
        # Runs of one lane and window; a lane's draws of one batch are consecutive.
        changes = np.flatnonzero(np.diff(lane) | np.diff(windows)) + 1
        for start, stop in zip([0, *changes], [*changes, len(lane)], strict=True):
            window = int(windows[start])
            order = self._window(int(lane[start]), epoch, window)
            out[start:stop] = window * self.window + order[inside[start:stop]].astype(np.int64)
        return out

    def _window(self, lane: int, epoch: int, window: int) -> UInt[np.ndarray, " samples"]:
        kept = self._windows.get(lane)
        if kept is None or kept[:2] != (epoch, window):
            size = min(self.window, self.lane_samples - window * self.window)
            # One window a lane is kept, as narrow as it can be: a rank may own thousands of lanes.
            order = permutation(size, WINDOWS, self.seed, epoch, lane, window)
            kept = (epoch, window, order.astype(np.min_scalar_type(size)))
            self._windows[lane] = kept
        return kept[2]
