"""The index of one tar: where each sample's members lie, so that any sample is one read away.

`<shard>.tar.idx` is text: one line of JSON about the shard, then one line of JSON a sample:
`["key",["jpg",512,30211],["txt",31232,48]]` (extension, offset, size). It is built in one pass over the tar's
headers, from which nothing is ever extracted.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from mmlab.assets.cache import cache_dir
from mmlab.data.decode import BrokenMember
from mmlab.data.tar import BLOCK, DamagedTar, Member, read_members

VERSION = 1
_HEAD_LIMIT = 4 * 2**20
"""Bytes of an index's first line, most of which are the extensions."""
_LINE_LIMIT = 16 * 2**20
"""Bytes of a sample's line: names have 1 MiB at most, and a byte of them six letters of JSON at most."""
_BLOWUP = 8
"""An index is at most this much larger than its tar, by the same reckoning."""
_LIES = "index does not fit its shard"
_NAME = re.compile(r"((?:.*/|)[^.]+)\.([^/]*)", re.DOTALL)  # webdataset's own, but for line breaks


@dataclass(frozen=True)
class ShardInfo:
    """What the first line of an index says of its shard."""

    samples: int
    bytes: int
    """Size of the tar that was indexed."""
    digest: str
    """SHA-256 of all keys, extensions, offsets and sizes (of the index's other lines)."""
    extensions: Mapping[str, int]
    """How many samples have each extension."""
    duplicates: int = 0
    """Samples whose key another sample of the shard had before."""
    damage: str | None = None
    """Where and how the tar is cut off or damaged; complete samples before that point are indexed."""
    version: int = VERSION


_FIELDS = tuple(field.name for field in fields(ShardInfo))


@dataclass(frozen=True)
class Index:
    """An index that fits its tar."""

    info: ShardInfo
    path: Path
    """Where the index lies: beside the tar, or in the cache directory where that folder is read-only."""
    body: int
    """Offset of the first sample's line."""


def split_name(name: str) -> tuple[str, str] | None:
    """Key and extension of a member, as webdataset splits them, or None where the member is no sample's.

    The key is the path up to the first dot of the file name, the extension all that follows, in lower case.
    """
    match = _NAME.fullmatch(name)
    if match is None or name.rpartition("/")[2].startswith("__"):
        return None
    return match[1], match[2].lower()


def open_index(tar: Path) -> Index:
    """The index of a tar, built and kept where it is missing or older than the tar.

    Raises:
        ValueError: No such file, no tar, or nowhere to keep the index.
    """
    now = _stat(tar)
    for place in (_beside, _cached):
        found = read_index(place(tar))
        if found is not None and _fits(found, now):
            return found
    return build_index(tar)


def _stat(tar: Path) -> os.stat_result:
    try:
        found = os.stat(tar)
    except OSError as error:
        raise ValueError(f"no shard {tar}: {error.strerror}") from error
    if not stat.S_ISREG(found.st_mode):  # opening a pipe would wait for ever
        raise ValueError(f"no shard {tar}: it is no file")
    return found


def build_index(tar: Path, place: Path | None = None) -> Index:
    """Index a tar anew and keep the index.

    Args:
        tar: The file.
        place: Where to keep the index; None: beside the tar or, where that is refused, in the cache
            directory.

    Raises:
        ValueError: The file is no plain tar, or there is nowhere to keep the index.
    """
    info, lines = _scan(tar)
    head = json.dumps(asdict(info)) + "\n"
    content = (head + "".join(lines)).encode("ascii")
    refusals = []
    for path in (_beside(tar), _cached(tar)) if place is None else (place,):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, content)
        except OSError as error:
            refusals.append(f"{path.parent}: {error.strerror}")
        else:
            return Index(info, path, len(head))
    raise ValueError(f"no place for the index of {tar} ({'; '.join(refusals)}): set MMLAB_CACHE")


def _beside(tar: Path) -> Path:
    return tar.with_name(tar.name + ".idx")


def _cached(tar: Path) -> Path:
    name = hashlib.sha256(os.fsencode(tar.resolve())).hexdigest()[:32]
    return cache_dir() / "index" / f"{name}.tar.idx"


def _write(path: Path, content: bytes) -> None:
    """Write a file that others see whole or not at all."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(temporary).chmod(0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_index(path: Path) -> Index | None:
    """The index that a file holds, or None where it holds none; only its first line is read."""
    try:
        if not path.is_file():  # opening a pipe would wait for ever
            return None
        with path.open("rb") as file:
            line = file.readline(_HEAD_LIMIT)
            size = os.fstat(file.fileno()).st_size
        values = json.loads(line)
        info = ShardInfo(**{name: values[name] for name in _FIELDS})
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    fine = _is_sound(info) and size <= len(line) + _BLOWUP * info.bytes
    return Index(info, path, len(line)) if fine else None


def _is_sound(info: ShardInfo) -> bool:
    """Whether what a file says of a shard can be true at all."""
    return (
        info.version == VERSION
        and all(_is_size(value) for value in (info.bytes, info.samples, info.duplicates))
        and info.duplicates <= info.samples <= info.bytes // BLOCK
        and isinstance(info.digest, str)
        and isinstance(info.damage, str | None)
        and isinstance(info.extensions, dict)
        and all(_is_size(count) and count <= info.samples for count in info.extensions.values())
    )


def _is_size(value: Any) -> bool:
    return type(value) is int and value >= 0


def _fits(index: Index, tar: os.stat_result) -> bool:
    return index.info.bytes == tar.st_size and index.path.stat().st_mtime_ns >= tar.st_mtime_ns


def line_ends(index: Index) -> Int64[np.ndarray, " samples"]:
    """Where each sample's line of an index ends; takes memory for the samples, not for their lines.

    Raises:
        ValueError: The index is not what its first line says: damaged, or replaced.
    """
    digest = hashlib.sha256()
    ends = [np.empty(0, dtype=np.int64)]
    found, position = 0, index.body
    with index.path.open("rb") as file:
        file.seek(index.body)
        while found <= index.info.samples and (part := file.read(2**20)):
            digest.update(part)
            ends.append(np.flatnonzero(np.frombuffer(part, dtype=np.uint8) == ord("\n")) + position + 1)
            found += len(ends[-1])
            position += len(part)
    if found != index.info.samples or digest.hexdigest() != index.info.digest:
        raise ValueError(f"{index.path} does not fit its shard: delete it, it is then rebuilt")
    return np.concatenate(ends)


def read_line(file: int, start: int, stop: int, *, size: int) -> tuple[str, list[tuple[str, int, int]]]:
    """One sample's line of an open index: its key, then extension, offset and size of its members.

    An index that lies beside a tar is as foreign as the tar: it must not make anyone read elsewhere.

    Args:
        file: Descriptor of the index.
        start: Where the line begins.
        stop: Where it ends.
        size: Of the tar in bytes.

    Raises:
        BrokenMember: This is no such line, or it names bytes that the tar does not have.
    """
    if stop - start > _LINE_LIMIT:
        raise BrokenMember(_LIES)
    try:
        key, *members = json.loads(os.pread(file, stop - start, start))
        found = [(extension, offset, length) for extension, offset, length in members]
    except (ValueError, TypeError, RecursionError):
        raise BrokenMember(_LIES) from None
    inside = all(
        isinstance(name, str) and _is_size(offset) and _is_size(length) and offset + length <= size
        for name, offset, length in found
    )
    # Members of a tar do not overlap; a thousand names for the same bytes would take them a thousand times.
    if not inside or sum(length for *_, length in found) > size or not found or type(key) is not str:
        raise BrokenMember(_LIES)
    return key, found


def _scan(tar: Path) -> tuple[ShardInfo, list[str]]:
    """Read a tar's headers."""
    size = _stat(tar).st_size
    keys: set[str] = set()
    extensions: Counter[str] = Counter()
    lines: list[str] = []
    duplicates = 0
    damage: list[str] = []
    for key, members in _samples(tar, size, damage):
        duplicates += key in keys
        keys.add(key)
        extensions.update(members.keys())
        entries = [[extension, *extent] for extension, extent in members.items()]
        lines.append(json.dumps([key, *entries], separators=(",", ":")) + "\n")
    digest = hashlib.sha256("".join(lines).encode("ascii")).hexdigest()
    found = dict(sorted(extensions.items()))
    return ShardInfo(len(lines), size, digest, found, duplicates, damage[0] if damage else None), lines


def _samples(tar: Path, size: int, damage: list[str]) -> Iterator[tuple[str, dict[str, tuple[int, int]]]]:
    """Keys and members (offset, size) of the complete samples; what ends the tar early goes to `damage`."""
    key, members = "", dict[str, tuple[int, int]]()
    for member in _members(tar, size, damage):
        name = split_name(member.name)
        if name is None:
            continue
        if name[0] != key or name[1] in members:
            if members:
                yield key, members
            key, members = name[0], {}
        members[name[1]] = (member.offset, member.size)
    # Where a tar is cut off, nobody knows whether its last sample is complete.
    if members and not damage:
        yield key, members


def _members(tar: Path, size: int, damage: list[str]) -> Iterator[Member]:
    try:
        with tar.open("rb") as file:
            yield from read_members(file.fileno(), size)
    except DamagedTar as error:
        if error.position == 0:
            raise ValueError(
                f"{tar} is no plain tar ({error}): decompress, remove or fetch it again"
            ) from error
        damage.append(str(error))
    except OSError as error:
        raise ValueError(f"cannot read {tar}: {error.strerror}") from error
