"""Sets of shards (WebDataset tars), local and remote: find, read by index, write."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from mmlab.assets.progress import progress
from mmlab.data.ahead import Ahead
from mmlab.data.decode import BrokenMember
from mmlab.data.index import (
    Index,
    ShardInfo,
    build_index,
    line_ends,
    open_index,
    read_line,
    split_name,
)
from mmlab.data.recent import Recent
from mmlab.data.remote import RemoteShards, check_address, is_address
from mmlab.data.samples import RawSample, SampleSet
from mmlab.data.shard_cache import ShardCache

SAMPLE_LIMIT = 256 * 2**20
"""Larger samples, in bytes, are not read."""
_OPEN_SHARDS = 128
"""Shards whose files stay open, in each process."""
_OPEN_REMOTE = 32
"""The same where some are remote: what is open takes room in the cache."""
_OPENERS = 8
"""Shards that are opened, or fetched to be indexed, at the same time."""
_TABLE_BYTES = 64 * 2**20
"""Memory for the places of samples in their index, in each process."""
_BLOCK = 2**16
"""Bytes up to which a sample is read at once; cutting its members out copies them."""

_REMOTE = RemoteShards()


class ShardSet(SampleSet):
    """Tars in a fixed order.

    Files are opened where they are first read, and reading moves no file position. Memory does not grow with
    the number of shards. A remote shard is fetched into a folder of bounded size when it is first read, or
    ahead of that where it was announced.
    """

    def __init__(self, paths: Sequence[Path | str], *, remote: RemoteShards = _REMOTE) -> None:
        """Open shards, indexing those that have no index yet.

        Args:
            paths: The tars, paths or addresses; they keep this order.
            remote: How addresses are read.

        Raises:
            ValueError: A file is missing or is no tar, or an address is not allowed.
            FetchError: A remote shard must be indexed but cannot be fetched, or is no tar.
        """
        self.paths = tuple(path if is_address(str(path)) else Path(path) for path in paths)
        addresses = [path for path in self.paths if isinstance(path, str)]
        for address in addresses:
            check_address(address, allow_pipe=remote.allow_pipe)
        self._cache = ShardCache(remote) if addresses else None
        with ThreadPoolExecutor(_OPENERS) as pool:  # opening waits for disk and network most of the time
            if self._cache is not None:
                new = [address for address in addresses if self._cache.known(address) is None]
                if new:
                    with progress(
                        f"indexing {len(new)} remote shards", total=len(new), in_bytes=False
                    ) as show:
                        for done, _ in enumerate(pool.map(self._cache.index, new), start=1):
                            show(done)
            self._indices: tuple[Index, ...] = tuple(pool.map(partial(_index, self._cache), self.paths))
        self._reset()

    @classmethod
    def find(
        cls, patterns: str | Sequence[str], *, folder: Path | None = None, remote: RemoteShards = _REMOTE
    ) -> ShardSet:
        """Open the shards that patterns name, sorted.

        Args:
            patterns: Paths, file name patterns (`*`, `?`), or ranges (`train-{000000..000099}.tar`), or
                addresses (`https://`, `s3://`, `gs://`, ..., `pipe:COMMAND`), with ranges too.
            folder: What relative paths are relative to; None: the working directory.
            remote: How addresses are read.

        Raises:
            ValueError: Nothing matches, a file named is missing, or an address is not allowed.
            FetchError: A remote shard must be indexed but cannot be fetched, or is no tar.
        """
        wanted = [patterns] if isinstance(patterns, str) else list(patterns)
        local = [pattern for pattern in wanted if not is_address(pattern)]
        addresses = {name for pattern in wanted if is_address(pattern) for name in _expand(pattern)}
        paths = find_shards(local, folder=folder) if local or not addresses else []
        return cls(sorted([*paths, *addresses], key=str), remote=remote)

    def _reset(self) -> None:
        most = _OPEN_SHARDS if self._cache is None else _OPEN_REMOTE
        self._tars = Recent[int](most, lambda file: 1, os.close)
        self._lines = Recent[int](_OPEN_SHARDS, lambda file: 1, os.close)
        self._tables = Recent[np.ndarray](_TABLE_BYTES, lambda table: table.nbytes, lambda table: None)
        self._ahead = Ahead(partial(_open_ahead, self.paths, self._indices, self._cache))

    def __getstate__(self) -> dict[str, Any]:
        return {"paths": self.paths, "_indices": self._indices, "_cache": self._cache}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):  # when opening failed; at the interpreter's end
            self._tars.clear()
            self._lines.clear()
            self._ahead.close()

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def names(self) -> tuple[str, ...]:
        """Paths or addresses of the tars."""
        return tuple(map(str, self.paths))

    @property
    def damaged(self) -> tuple[str, ...]:
        """Paths or addresses of the tars that are cut off or damaged; their complete samples are indexed."""
        return tuple(
            str(path) for path, index in zip(self.paths, self._indices, strict=True) if index.info.damage
        )

    @property
    def remote(self) -> bool:
        """Whether there are shards that must be fetched before they can be read."""
        return self._cache is not None

    @property
    def sizes(self) -> Int64[np.ndarray, " shards"]:
        """Bytes of each remote shard; 0 for local ones."""
        pairs = zip(self.paths, self._indices, strict=True)
        return np.array([i.info.bytes * isinstance(path, str) for path, i in pairs], dtype=np.int64)

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
        return self._entry(shard, sample)[0]

    def announce(self, shards: Sequence[int]) -> None:
        """Say which shards will be read soon, the first first: remote ones are fetched ahead, in a thread.

        As far as there is room, they are kept for their turn and not removed for later ones. This replaces
        what was announced before.
        """
        if self._cache is not None:
            remote = [s for s in shards if isinstance(self.paths[s], str) and s not in self._tars.kept]
            self._ahead.announce(remote)

    def read(self, shard: int, sample: int) -> RawSample:
        """Read one sample: a small one with one read of its file, others with one for each member.

        Raises:
            BrokenMember: The sample is too large, or the file ends before it.
            FetchError: The shard is remote and cannot be fetched, or has changed.
        """
        key, members = self._entry(shard, sample)
        if sum(size for _, _, size in members) > SAMPLE_LIMIT:
            raise BrokenMember(f"sample above {SAMPLE_LIMIT >> 20} MiB")
        tar = self._tars.get(shard, self._open)
        start = min(offset for _, offset, _ in members)
        stop = max(offset + size for _, offset, size in members)
        if stop - start <= _BLOCK:
            block = os.pread(tar, stop - start, start)
            content = {ext: block[offset - start : offset - start + size] for ext, offset, size in members}
        else:
            content = {ext: os.pread(tar, size, offset) for ext, offset, size in members}
        if any(len(content[ext]) != size for ext, _, size in members):
            raise BrokenMember("shard is shorter than its index")
        return RawSample(key, content)

    def _open(self, shard: int) -> int:
        path = self.paths[shard]
        if isinstance(path, Path):
            return os.open(path, os.O_RDONLY)
        assert self._cache is not None
        ready = self._ahead.take(shard)
        return self._cache.open(path, self._indices[shard]) if ready is None else ready

    def _entry(self, shard: int, sample: int) -> tuple[str, list[tuple[str, int, int]]]:
        """Key of a sample, and extension, offset and size of its members."""
        index = self._indices[shard]
        lines = self._lines.get(shard, self._open_lines)
        ends = self._tables.get(shard, self._table)
        start = int(ends[sample - 1]) if sample > 0 else index.body
        return read_line(lines, start, int(ends[sample]), size=index.info.bytes)

    def _open_lines(self, shard: int) -> int:
        return os.open(self._indices[shard].path, os.O_RDONLY)

    def _table(self, shard: int) -> Int64[np.ndarray, " samples"]:
        return line_ends(self._indices[shard])


def _index(cache: ShardCache | None, path: Path | str) -> Index:
    if isinstance(path, Path):
        return open_index(path)
    assert cache is not None
    return cache.index(path)


def _open_ahead(
    paths: tuple[Path | str, ...], indices: tuple[Index, ...], cache: ShardCache | None, shard: int
) -> int:
    # No method: the thread that calls it must not keep the set alive.
    path = paths[shard]
    assert cache is not None
    assert isinstance(path, str)
    return cache.open(path, indices[shard], insist=False)


def find_shards(patterns: str | Sequence[str], *, folder: Path | None = None) -> list[Path]:
    """The files that patterns without addresses name, sorted, each once; see :meth:`ShardSet.find`."""
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
