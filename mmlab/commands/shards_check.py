"""`mmlab shards check`: what was found, for people and as JSON."""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mmlab.assets.progress import progress
from mmlab.data.check import check_shards
from mmlab.data.duplicates import Alike, Overlap, Place, Shared, find_overlap, split_of
from mmlab.data.findings import Findings
from mmlab.data.lengths import added, bins, drawn, percentile
from mmlab.data.remote import is_address
from mmlab.data.shards import ShardSet, find_shards

EXAMPLES = 3
"""Keys shown of each fault."""
LINES = 40
"""Lines shown of what is wrong."""
_THINGS = {"images": "picture", "sounds": "sound", "texts": "caption", "keys": "key"}


def run(arguments: argparse.Namespace) -> int:
    """Check the shards that the command names; returns the exit status."""
    for address in filter(is_address, arguments.paths):
        raise ValueError(f"{address} is not on this machine: fetch the shards to check, then name the files")
    paths = find_shards(arguments.paths)
    splits = _splits(paths, arguments.split or [])
    jobs = _cores() if arguments.jobs is None else arguments.jobs
    if jobs < 1:
        raise ValueError(f"--jobs {jobs}: at least 1 process must read")
    sizes = {path: path.stat().st_size for path in paths}
    read = 0
    title = f"checking {len(paths)} shards"
    try:
        with progress(title, total=sum(sizes.values()), in_bytes=True) as show:

            def done(path: Path) -> None:
                nonlocal read
                read += sizes[path]
                show(read)

            findings = check_shards(paths, jobs=jobs, fresh=arguments.fresh, done=done)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on: what was found in whole shards is kept") from None
    report = _Report(findings, splits, find_overlap(findings, splits))
    report.print_json() if arguments.json else report.print()
    return 0 if report.fine else 1


def _cores() -> int:
    """Cores that this process may use; a job of a cluster may not use all of its node's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _splits(paths: Sequence[Path], given: Sequence[str]) -> list[str]:
    """The split of each shard."""
    patterns: dict[str, str] = {}
    for word in given:
        name, equals, pattern = word.partition("=")
        if not (name and equals and pattern):
            raise ValueError(f"--split {word}: give NAME=PATTERN, such as --split 'val=*/holdout-*.tar'")
        patterns[name] = pattern
    splits = [split_of(path, patterns) for path in paths]
    for name, pattern in patterns.items():
        if name not in splits:
            raise ValueError(f"--split {name}={pattern}: none of the {len(paths)} shards is named so")
    return splits


def plain(text: object) -> str:
    """A text from a shard, safe to print: control characters could command the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


class _Report:
    """All that was found."""

    def __init__(self, findings: Sequence[Findings], splits: Sequence[str], overlap: Overlap) -> None:
        self.findings = findings
        self.splits = splits
        self.overlap = overlap
        self._opened: dict[int, ShardSet] = {}

    @property
    def fine(self) -> bool:
        return self.overlap.fine and all(found.fine for found in self.findings)

    def print_json(self) -> None:
        """One line a shard, and one for all."""
        for found, split in zip(self.findings, self.splits, strict=True):
            values = {name: value for name, value in vars(found).items() if name != "marks"}
            values |= {"path": str(found.path), "split": split, "fine": found.fine}
            values |= {name: _spread(values[name]) for name in ("characters", "words")}
            print(json.dumps(values))
        whole = self._resolve(asdict(self.overlap))
        pairs = [*zip(self.overlap.shared, whole.pop("shared"), strict=True)]
        whole |= {
            "leakage": [values for shared, values in pairs if shared.leak],
            "shared": [values for shared, values in pairs if not shared.leak],
            "fine": self.fine,
            "shards": len(self.findings),
            "samples": sum(found.samples for found in self.findings),
            "bytes": sum(found.bytes for found in self.findings),
            "characters": _spread(added(found.characters for found in self.findings)),
            "words": _spread(added(found.words for found in self.findings)),
        }
        print(json.dumps({"all": whole}))

    def _resolve(self, value: Any) -> Any:
        """Say which shard and key a place is, wherever one stands."""
        if isinstance(value, Place):
            return [str(self.findings[value.shard].path), self._key(value)]
        if isinstance(value, Mapping):
            return {name: self._resolve(inner) for name, inner in value.items()}
        if isinstance(value, tuple | list):
            return [self._resolve(inner) for inner in value]
        return value

    def _key(self, place: Place) -> str:
        if place.shard not in self._opened:
            self._opened[place.shard] = ShardSet([self.findings[place.shard].path])
        return self._opened[place.shard].key(0, place.sample)

    def print(self) -> None:
        """A table of splits, what is wrong, what is worth knowing, how long captions are."""
        console = Console(highlight=False)
        console.print(self._table())
        wrong, notes = [*self._wrong()], [*self._notes()]
        for title, lines in (("wrong", wrong), ("worth knowing, but not wrong", notes)):
            if lines:
                print(f"\n{title}")
                print("\n".join(f"  {line}" for line in lines[:LINES]))
            if len(lines) > LINES:
                print(f"  and {len(lines) - LINES} more lines: --json says all")
        for name in ("characters", "words"):
            spread = added(getattr(found, name) for found in self.findings)
            if spread:
                low, middle, high = (percentile(spread, percent) for percent in (5, 50, 95))
                print(
                    f"\ncaption lengths in {name}: median {middle}, 90 % from {low} to {high}, "
                    f"longest {max(spread)}"
                )
                print("\n".join(f"  {line}" for line in drawn(spread)))
        print(f"\n{'fine' if self.fine else 'NOT FINE'}")

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        table.add_column("split")
        columns = ("shards", "not fine", "samples", "MB", "pictures", "sounds", "captions")
        for column in columns:
            table.add_column(column, justify="right")
        for split in dict.fromkeys(self.splits):
            chosen = [f for f, name in zip(self.findings, self.splits, strict=True) if name == split]
            kinds = (
                sum(len(f.marks.get(kind, ())) for f in chosen) for kind in ("images", "sounds", "texts")
            )
            table.add_row(
                plain(split).replace("[", r"\["),
                str(len(chosen)),
                str(sum(not f.fine for f in chosen)),
                str(sum(f.samples for f in chosen)),
                f"{sum(f.bytes for f in chosen) / 1e6:.1f}",
                *map(str, kinds),
            )
        return table

    def _wrong(self) -> Iterator[str]:
        yield from (f"leak: {self._shared_line(shared)}" for shared in self.overlap.shared if shared.leak)
        keys = self.overlap.keys
        if keys.samples > 0:
            who = counted(keys.samples, "sample")
            yield f"{who} with a key that another shard of the split has too{self._pairs(keys.examples)}"
        for found in self.findings:
            where = plain(found.path)
            if found.damage is not None:
                yield f"{where}: {plain(found.damage)}"
            if found.duplicates > 0:
                who = counted(found.duplicates, "sample")
                yield f"{where}: {who} with a key that the shard had before{_keys(found, 'duplicates')}"
            for fault, count in found.broken.items():
                yield f"{where}: {count} x {plain(fault)}{_keys(found, fault)}"

    def _notes(self) -> Iterator[str]:
        for kind, repeats in self.overlap.duplicates.items():
            thing = _THINGS[kind]
            if repeats.samples > 0:
                who = counted(repeats.samples, "sample")
                yield f"{who} with the {thing} of another{self._pairs(repeats.examples)}"
            if repeats.near > 0:
                who = counted(repeats.near, "sample")
                yield f"{who} more with nearly the {thing} of another{self._pairs(repeats.near_examples)}"
        yield from (self._shared_line(shared) for shared in self.overlap.shared if not shared.leak)
        lacking: Counter[str] = Counter()
        for found in self.findings:
            lacking.update(found.lacking)
        yield from (f"{counted(count, 'sample')} without {plain(name)}" for name, count in lacking.items())
        unsorted = sum(found.unsorted > 0 for found in self.findings)
        if unsorted > 0:
            yield f"keys not in alphabetical order in {counted(unsorted, 'shard')}: nothing needs them to be"

    def _shared_line(self, shared: Shared) -> str:
        one, two = map(plain, shared.splits)
        near = shared.samples[0] - shared.exact[0]
        who, thing = counted(shared.samples[0], "sample"), _THINGS[shared.kind]
        what = f"nearly the {thing}" if shared.exact[0] == 0 else f"the {thing}"
        how = f" ({near} of them nearly)" if 0 < near < shared.samples[0] else ""
        return f"{who} of {one} with {what} of a sample of {two}{how}{self._pairs(shared.examples)}"

    def _pairs(self, pairs: Sequence[Alike]) -> str:
        return _listed([f"{self._name(a)} {'=' if same else '~'} {self._name(b)}" for a, b, same in pairs])

    def _name(self, place: Place) -> str:
        return f"{self.findings[place.shard].path.name.removesuffix('.tar')}:{self._key(place)}"


def counted(number: int, noun: str) -> str:
    """A number of things: `1 sample`, `2 samples`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _spread(lengths: Mapping[int, int]) -> dict[str, Any]:
    """Count, percentiles and bins (first length, last length, captions) of a spread."""
    marks = {f"p{p}": percentile(lengths, p) for p in (5, 50, 95, 100)} if lengths else {}
    return {"captions": sum(lengths.values()), **marks, "bins": bins(lengths)}


def _keys(found: Findings, fault: str) -> str:
    return _listed(found.examples.get(fault, []))


def _listed(examples: Sequence[str]) -> str:
    more = ", ..." if len(examples) > EXAMPLES else ""
    return f" ({', '.join(map(plain, examples[:EXAMPLES]))}{more})" if examples else ""
