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
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from mmlab.assets.cache import cache_dir

VERSION = 1
_BLOCK = 512
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
    try:
        now = os.stat(tar)
    except OSError as error:
        raise ValueError(f"no shard {tar}: {error.strerror}") from error
    for place in (_beside, _cached):
        found = _read_head(place(tar), now)
        if found is not None:
            return found
    return build_index(tar)


def build_index(tar: Path) -> Index:
    """Index a tar anew and keep the index beside it, or in the cache directory.

    Raises:
        ValueError: The file is no plain tar, or there is nowhere to keep the index.
    """
    info, lines = _scan(tar)
    head = json.dumps(asdict(info)) + "\n"
    content = (head + "".join(lines)).encode("ascii")
    refusals = []
    for path in (_beside(tar), _cached(tar)):
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


def _read_head(path: Path, tar: os.stat_result) -> Index | None:
    """An index, if there is one that fits the tar; only its first line is read."""
    try:
        with path.open("rb") as file:
            line = file.readline(1 << 20)
            written = os.fstat(file.fileno()).st_mtime_ns
        values = json.loads(line)
        info = ShardInfo(**{name: values[name] for name in _FIELDS})
    except (OSError, ValueError, TypeError, KeyError):
        return None
    fits = info.version == VERSION and info.bytes == tar.st_size and written >= tar.st_mtime_ns
    return Index(info, path, len(line)) if fits else None


def _scan(tar: Path) -> tuple[ShardInfo, list[str]]:
    """Read a tar's headers."""
    size = tar.stat().st_size
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
    try:
        # Names that are no UTF-8 become printable; they are labels here, never paths.
        archive = tarfile.open(tar, "r:", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise ValueError(f"{tar} is no plain tar ({error}): decompress, remove or fetch it again") from error
    key, members = "", dict[str, tuple[int, int]]()
    with archive:
        while True:
            try:
                member = archive.next()
            except (tarfile.TarError, ValueError, OverflowError) as error:
                damage.append(f"{error} near byte {archive.offset}")
                break
            archive.members.clear()  # type: ignore[attr-defined]  # or tarfile keeps all headers it has seen
            if member is None:
                if not _ends_here(archive):
                    damage.append(f"no end of archive at byte {archive.offset}")
                break
            if member.size < 0 or member.offset_data + member.size > size:
                damage.append(f"cut off inside {member.name}")
                break
            name = split_name(member.name)
            if name is None or not member.isreg() or member.issparse():
                continue
            if name[0] != key or name[1] in members:
                if members:
                    yield key, members
                key, members = name[0], {}
            members[name[1]] = (member.offset_data, member.size)
    # Where a tar is cut off, nobody knows whether its last sample is complete.
    if members and not damage:
        yield key, members


def _ends_here(archive: tarfile.TarFile) -> bool:
    """Whether a tar ends with the block of zeros that it should; tarfile is silent about damaged headers."""
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    return archive.fileobj.read(_BLOCK) == bytes(_BLOCK)
