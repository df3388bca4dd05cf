"""Sets of shards (WebDataset tars): find, read by index, write."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Int64

from mmlab.data.decode import BrokenMember
from mmlab.data.index import Index, ShardInfo, build_index, open_index, split_name
from mmlab.data.samples import RawSample, SampleSet

MEMBER_LIMIT = 256 * 2**20
"""Larger members, in bytes, are not read."""
_OPEN_SHARDS = 128
"""Shards whose files stay open, in each process."""
_TABLE_BYTES = 64 * 2**20
"""Memory for the places of samples in their index, in each process."""
_GAP = 2**20
"""Bytes that one read may span beyond a sample's own."""

_V = TypeVar("_V")


class _Files(NamedTuple):
    tar: int
    lines: int

    def close(self) -> None:
        os.close(self.tar)
        os.close(self.lines)


class _Recent(Generic[_V]):
    """What was used last, up to a total cost."""

    def __init__(self, limit: int, cost: Callable[[_V], int], drop: Callable[[_V], None]) -> None:
        self.limit, self.cost, self.drop = limit, cost, drop
        self.kept: OrderedDict[int, _V] = OrderedDict()
        self.total = 0

    def get(self, number: int, make: Callable[[int], _V]) -> _V:
        if number in self.kept:
            self.kept.move_to_end(number)
            return self.kept[number]
        value = make(number)
        self.kept[number] = value
        self.total += self.cost(value)
        while self.total > self.limit and len(self.kept) > 1:
            _, oldest = self.kept.popitem(last=False)
            self.total -= self.cost(oldest)
            self.drop(oldest)
        return value

    def clear(self) -> None:
        while self.kept:
            self.drop(self.kept.popitem()[1])
        self.total = 0


class ShardSet(SampleSet):
    """Tars in a fixed order.

    Files are opened where they are first read, and reading moves no file position. Memory does not grow with
    the number of shards.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        """Open shards, indexing those that have no index yet.

        Args:
            paths: The tars; they keep this order.

        Raises:
            ValueError: A file is missing or is no tar.
        """
        self.paths = tuple(paths)
        with ThreadPoolExecutor(8) as pool:  # opening waits for the file system most of the time
            self._indices: tuple[Index, ...] = tuple(pool.map(open_index, self.paths))
        self._reset()

    @classmethod
    def find(cls, patterns: str | Sequence[str], *, folder: Path | None = None) -> ShardSet:
        """Open the shards that patterns name, sorted.

        Args:
            patterns: Paths, file name patterns (`*`, `?`), or ranges (`train-{000000..000099}.tar`).
            folder: What relative patterns are relative to; None: the working directory.

        Raises:
            ValueError: Nothing matches, or a file named is missing.
        """
        return cls(find_shards(patterns, folder=folder))

    def _reset(self) -> None:
        self._files = _Recent[_Files](_OPEN_SHARDS, lambda files: 1, _Files.close)
        self._tables = _Recent[np.ndarray](_TABLE_BYTES, lambda table: table.nbytes, lambda table: None)

    def __getstate__(self) -> dict[str, Any]:
        return {"paths": self.paths, "_indices": self._indices}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):  # when opening failed; at the interpreter's end
            self._files.clear()

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def names(self) -> tuple[str, ...]:
        """Paths of the tars."""
        return tuple(map(str, self.paths))

    @property
    def damaged(self) -> tuple[str, ...]:
        """Paths of the tars that are cut off or damaged; their complete samples are indexed."""
        return tuple(
            str(path) for path, index in zip(self.paths, self._indices, strict=True) if index.info.damage
        )

    @property
    def infos(self) -> tuple[ShardInfo, ...]:
        """What is known of each shard without reading it."""
        return tuple(index.info for index in self._indices)

    @property
    def counts(self) -> Int64[np.ndarray, " shards"]:
        """Samples of each shard."""
        return np.array([index.info.samples for index in self._indices], dtype=np.int64)

    @property
    def extensions(self) -> dict[str, int]:
        """How many samples have each extension."""
        total: dict[str, int] = {}
        for index in self._indices:
            for extension, count in index.info.extensions.items():
                total[extension] = total.get(extension, 0) + count
        return dict(sorted(total.items()))

    @property
    def digest(self) -> str:
        """SHA-256 over the shards' digests, in order."""
        return hashlib.sha256("\n".join(index.info.digest for index in self._indices).encode()).hexdigest()

    def key(self, shard: int, sample: int) -> str:
        """The key of a sample."""
        return str(self._entry(shard, sample)[0])

    def read(self, shard: int, sample: int) -> RawSample:
        """Read one sample with one read of its file.

        Raises:
            BrokenMember: A member is too large, or the file ends before it.
        """
        key, *members = self._entry(shard, sample)
        if any(size > MEMBER_LIMIT for _, _, size in members):
            raise BrokenMember(f"member above {MEMBER_LIMIT >> 20} MiB")
        tar = self._files.get(shard, self._open).tar
        start = min(offset for _, offset, _ in members)
        stop = max(offset + size for _, offset, size in members)
        if stop - start <= sum(size for _, _, size in members) + _GAP:
            block = os.pread(tar, stop - start, start)
            content = {ext: block[offset - start : offset - start + size] for ext, offset, size in members}
        else:
            content = {ext: os.pread(tar, size, offset) for ext, offset, size in members}
        if any(len(content[ext]) != size for ext, _, size in members):
            raise BrokenMember("shard is shorter than its index")
        return RawSample(key, content)

    def _open(self, shard: int) -> _Files:
        tar = os.open(self.paths[shard], os.O_RDONLY)
        return _Files(tar, os.open(self._indices[shard].path, os.O_RDONLY))

    def _entry(self, shard: int, sample: int) -> list[Any]:
        """The index line of a sample: its key, then (extension, offset, size) of its members."""
        files = self._files.get(shard, self._open)
        ends = self._tables.get(shard, self._table)
        start = int(ends[sample - 1]) if sample > 0 else self._indices[shard].body
        entry: list[Any] = json.loads(os.pread(files.lines, int(ends[sample]) - start, start))
        return entry

    def _table(self, shard: int) -> Int64[np.ndarray, " samples"]:
        """Where each sample's line of the index ends."""
        index = self._indices[shard]
        body = np.fromfile(index.path, dtype=np.uint8, offset=index.body)
        ends = np.flatnonzero(body == ord("\n")) + index.body + 1
        if len(ends) != index.info.samples:
            raise ValueError(f"{index.path} does not fit its shard: delete it, it is then rebuilt")
        return ends


def find_shards(patterns: str | Sequence[str], *, folder: Path | None = None) -> list[Path]:
    """The files that patterns name, sorted, each once; see :meth:`ShardSet.find`."""
    wanted = [patterns] if isinstance(patterns, str) else list(patterns)
    found: set[str] = set()
    for pattern in wanted:
        for name in _expand(str(pattern if folder is None else folder / pattern)):
            matches = [name] if os.path.isfile(name) else glob.glob(name, recursive=True)
            if not matches:
                raise ValueError(f"no shards: nothing matches {name}")
            found.update(matches)
    if not found:
        raise ValueError("no shards: no pattern was given")
    return [Path(name) for name in sorted(found)]


def _expand(pattern: str) -> Iterator[str]:
    """Expand `{000..009}` (both ends included, width kept) and `{a,b}`."""
    match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if match is None:
        yield pattern
        return
    if match[3] is None:
        width = len(match[1])
        choices = [f"{number:0{width}d}" for number in range(int(match[1]), int(match[2]) + 1)]
    else:
        choices = match[3].split(",")
    for choice in choices:
        yield from _expand(pattern[: match.start()] + choice + pattern[match.end() :])


def write_shards(
    samples: Iterable[Mapping[str, Any]],
    folder: Path,
    prefix: str,
    *,
    max_samples: int = 10_000,
    max_bytes: int = 10**9,
) -> list[Path]:
    """Write samples as `<prefix>-000000.tar`, ... with their indices; equal samples give equal bytes.

    The shards appear when all are complete, and replace those of the same prefix.

    Args:
        samples: Each with `__key__` and members by extension: bytes, or what webdataset's writer encodes (str
            for `txt`, JSON for `json`, arrays for `npy`).
        folder: Where to; made where it is missing.
        prefix: Of the file names.
        max_samples: Of a shard.
        max_bytes: A shard that has reached this size is closed.

    Raises:
        ValueError: There are no samples, or the last part of a key is empty or holds a dot.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder, prefix=f".{prefix}-"))
    try:
        written = _write_tars(samples, temporary, prefix, max_samples, max_bytes)
        if not written:
            raise ValueError(f"no samples to write to {folder / prefix}-*.tar")
        old = re.compile(re.escape(prefix) + r"-\d{6}\.tar(\.idx)?")
        for path in folder.iterdir():
            if old.fullmatch(path.name):
                path.unlink()
        for path in sorted(temporary.iterdir()):
            os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return [folder / path.name for path in written]


def _write_tars(
    samples: Iterable[Mapping[str, Any]], folder: Path, prefix: str, max_samples: int, max_bytes: int
) -> list[Path]:
    from webdataset.writer import TarWriter  # deferred: it imports much, and reading needs none of it

    paths: list[Path] = []
    source = iter(samples)
    sample = next(source, None)
    while sample is not None:
        paths.append(folder / f"{prefix}-{len(paths):06d}.tar")
        count = 0
        # Fixed times and owners: the same samples give the same file.
        with (
            paths[-1].open("wb") as file,
            TarWriter(file, user="", group="", mtime=0, format="PAX_FORMAT") as writer,
        ):
            while sample is not None and count < max_samples and file.tell() < max_bytes:
                key = sample["__key__"]
                if split_name(f"{key}.x") != (key, "x"):
                    raise ValueError(f"sample key {key!r}: its last part must be a name without a dot")
                writer.write(dict(sample))
                count += 1
                sample = next(source, None)
        build_index(paths[-1])
    return paths
