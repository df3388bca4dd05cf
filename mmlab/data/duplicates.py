"""What lies in shards twice: keys, pictures, sounds and texts, within a split and across splits."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmlab.data.findings import EXAMPLES, MARKS, Findings
from mmlab.data.likeness import near_pictures, near_texts


class Place(NamedTuple):
    """A sample of the shards checked."""

    shard: int
    sample: int


class Alike(NamedTuple):
    """Two samples that hold the same, or nearly the same."""

    first: Place
    second: Place
    same: bool
    """Whether they hold the very same."""


@dataclass(frozen=True)
class Repeats:
    """What lies in several samples, of one kind."""

    samples: int
    """Samples that hold something that another sample, of any split, holds too."""
    near: int
    """Samples, beside these, that hold something nearly the same as another sample does."""
    examples: tuple[Alike, ...] = ()
    near_examples: tuple[Alike, ...] = ()


@dataclass(frozen=True)
class Shared:
    """What two splits share, of one kind."""

    kind: str
    """`images`, `sounds`, `texts` or `keys`."""
    splits: tuple[str, str]
    """The larger split last."""
    samples: tuple[int, int]
    """Samples of each split that hold what the other holds too, or nearly."""
    exact: tuple[int, int]
    """As `samples`, without what is only nearly the same."""
    examples: tuple[Alike, ...] = ()

    @property
    def leak(self) -> bool:
        """Whether the split is wrong: pictures and sounds are evidence; captions repeat legitimately, and
        keys may begin anew in each split."""
        return self.kind in ("images", "sounds")


@dataclass(frozen=True)
class Overlap:
    """What all shards together hold twice."""

    duplicates: Mapping[str, Repeats]
    """By kind: `images`, `sounds`, `texts`."""
    keys: Repeats
    """Keys that several shards of one split have; inside a shard, see :attr:`Findings.duplicates`."""
    shared: tuple[Shared, ...]

    @property
    def fine(self) -> bool:
        """Whether no key repeats in a split, and no picture or sound is in two splits."""
        return self.keys.samples == 0 and not any(shared.leak for shared in self.shared)


def split_of(path: Path, given: Mapping[str, str]) -> str:
    """The split that a shard belongs to.

    Args:
        path: Of the shard.
        given: Names of splits, each with a pattern of file names or paths; the first that fits counts. Where
            there are none, a split is what stands before the last number of the file name: `val` for
            `val-000000.tar`.
    """
    for name, pattern in given.items():
        if any(fnmatch(text, pattern) for text in (str(path), path.name)):
            return name
    if given:
        return "other"
    found = re.fullmatch(r"(.*?)[-_.]?\d+", path.name.split(".tar")[0])
    return found[1] if found and found[1] else "all"


def find_overlap(findings: Sequence[Findings], splits: Sequence[str]) -> Overlap:
    """Compare all samples of shards.

    Memory is that of the marks (:data:`mmlab.data.findings.MARKS`) and about as much again while one kind is
    compared; time grows as n log n.

    Args:
        findings: Of each shard.
        splits: Name of the split of each shard.
    """
    names = sorted(set(splits))
    split = np.array([names.index(name) for name in splits])
    duplicates: dict[str, Repeats] = {}
    shared: list[Shared] = []
    for kind in ("images", "sounds", "texts"):
        table = _Table(_gather(findings, kind), split)
        duplicates[kind] = table.repeats()
        shared += table.shared(kind, names)
    keys = _gather(findings, "keys")
    shared += _Table(keys, split).shared("keys", names)
    return Overlap(duplicates, _repeated_keys(keys, split), tuple(shared))


def _gather(findings: Sequence[Findings], kind: str) -> np.ndarray:
    """The marks of all shards, with the number of their shard."""
    tables = [np.empty(0, MARKS[kind])]
    for number, found in enumerate(findings):
        rows = found.marks.get(kind, tables[0]).copy()
        rows["shard"] = number
        tables.append(rows)
    return np.concatenate(tables)


def _repeated_keys(keys: np.ndarray, split: np.ndarray) -> Repeats:
    """Keys of which one split has several, in several shards; the same key of two splits is no repeat."""
    keys = keys.copy()
    # The first of a shard stands for all: the others are duplicates of that shard.
    _, first = np.unique(keys[["shard", "exact"]], return_index=True)
    keys = keys[np.sort(first)]
    keys["exact"] ^= (split[keys["shard"]].astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    return _Table(keys, split).repeats()


class _Table:
    """Marks of one kind, with those that are equal taken together as one thing."""

    def __init__(self, rows: np.ndarray, split: np.ndarray) -> None:
        # Twice in one sample is no repeat.
        _, once = np.unique(rows[["shard", "sample", "exact"]], return_index=True)
        self.rows = rows = rows[np.sort(once)]
        self.split = split[rows["shard"]] if len(rows) else np.empty(0, np.int64)
        _, first, thing, count = np.unique(
            rows["exact"], return_index=True, return_inverse=True, return_counts=True
        )
        self.first, self.thing, self.count = first, thing, count
        self.pairs = self._near()

    def _near(self) -> np.ndarray:
        """Pairs of different things that are nearly the same, but not within one sample."""
        things = self.rows[self.first]
        if "hash" in (things.dtype.names or ()):
            pairs = near_pictures(things["hash"], things["colours"])
        elif "sketch" in (things.dtype.names or ()):
            pairs = near_texts(things["sketch"])
        else:
            return np.empty((0, 2), np.int64)
        one, two = things[pairs[:, 0]], things[pairs[:, 1]]
        single = (self.count[pairs] == 1).all(axis=1)
        own = single & (one["shard"] == two["shard"]) & (one["sample"] == two["sample"])
        kept: np.ndarray = pairs[~own]
        return kept

    def _place(self, row: Any) -> Place:
        return Place(int(self.rows["shard"][row]), int(self.rows["sample"][row]))

    def _examples(self, one: np.ndarray, two: np.ndarray) -> tuple[Alike, ...]:
        """The first different pairs of samples among pairs of rows."""
        # Two samples may share many things: a sound in ten languages.
        some = zip(one[: 20 * EXAMPLES], two[: 20 * EXAMPLES], strict=True)
        pairs = dict.fromkeys(
            Alike(self._place(a), self._place(b), bool(self.thing[a] == self.thing[b])) for a, b in some
        )
        return tuple(pairs)[:EXAMPLES]

    def _samples(self, chosen: np.ndarray) -> int:
        """Different samples of rows."""
        return len(np.unique(self.rows[chosen][["shard", "sample"]]))

    def repeats(self) -> Repeats:
        """What several samples hold."""
        exact = self.count[self.thing] > 1
        alike = np.zeros(len(self.count), bool)
        alike[self.pairs.ravel()] = True
        twice = np.flatnonzero(exact & (np.arange(len(self.rows)) != self.first[self.thing]))
        both = self._samples(exact | alike[self.thing])
        return Repeats(
            samples=self._samples(exact),
            near=both - self._samples(exact),
            examples=self._examples(self.first[self.thing[twice]], twice),
            near_examples=self._examples(self.first[self.pairs[:, 0]], self.first[self.pairs[:, 1]]),
        )

    def shared(self, kind: str, names: Sequence[str]) -> list[Shared]:
        """What each two splits share."""
        has = np.zeros((len(self.count), len(names)), bool)
        has[self.thing, self.split] = True
        near = has.copy()
        np.logical_or.at(near, self.pairs[:, 0], has[self.pairs[:, 1]])
        np.logical_or.at(near, self.pairs[:, 1], has[self.pairs[:, 0]])
        found = []
        sizes = np.bincount(self.split, minlength=len(names))
        for pair in combinations(range(len(names)), 2):
            one, two = sorted(pair, key=lambda number: int(sizes[number]))
            rows = [(self.split == a) & near[self.thing, b] for a, b in ((one, two), (two, one))]
            same = [(self.split == a) & has[self.thing, b] for a, b in ((one, two), (two, one))]
            if not rows[0].any():
                continue
            # What is the very same before what is nearly so.
            shown = np.concatenate([np.flatnonzero(same[0]), np.flatnonzero(rows[0] & ~same[0])])
            found.append(
                Shared(
                    kind,
                    (names[one], names[two]),
                    (self._samples(rows[0]), self._samples(rows[1])),
                    (self._samples(same[0]), self._samples(same[1])),
                    self._examples(*self._partners(shown[: 2 * EXAMPLES], two)),
                )
            )
        return found

    def _partners(self, rows: np.ndarray, split: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows, and for each a row of another split that is the same or nearly so."""
        found = []
        for thing in self.thing[rows]:
            touching = self.pairs[(self.pairs == thing).any(axis=1)]
            others = np.flatnonzero(np.isin(self.thing, [thing, *touching.ravel()]) & (self.split == split))
            found.append(others[np.argmax(self.thing[others] == thing)])
        return rows, np.array(found, np.int64)
