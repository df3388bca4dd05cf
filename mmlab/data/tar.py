"""The headers of a tar: which members lie where. Nothing is extracted, no content is read.

Not by Python's `tarfile`: up to 3.11.9 its search for pax records takes time that grows with the square of a
header, it reads such headers whole whatever their size, walks chains of them by recursion, and goes back for
negative sizes (CVE-2024-6232, CVE-2025-8194).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import NamedTuple

BLOCK = 512
EXTENDED_LIMIT = 2**20
"""Larger extended headers, in bytes, are not read: they hold a name, times, and attributes of the file."""
_LONG_NAME, _LONG_LINK, _SPARSE = b"L", b"K", b"S"
_PAX, _PAX_GLOBAL = (b"x", b"X"), b"g"
_REGULAR = (b"0", b"\0", b"7")
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")
"""Links, devices, directories and pipes: no data follow, whatever the header's size."""
_OCTAL = re.compile(rb" *([0-7]*)[ \0]*", re.DOTALL)


class DamagedTar(ValueError):  # noqa: N818  (it is the tar that is at fault)
    """A tar that cannot be read on."""

    def __init__(self, what: str, position: int) -> None:
        super().__init__(f"{what} at byte {position}")
        self.position = position
        """Of the header that is at fault, in bytes."""


class Member(NamedTuple):
    """A regular file in a tar."""

    name: str
    """A label, never a path: bytes that are no UTF-8 are spelled out."""
    offset: int
    """Of its first byte in the tar."""
    size: int


class _Header(NamedTuple):
    name: bytes
    size: int
    kind: bytes
    more: bool
    """Whether blocks of the map of a sparse file follow (GNU)."""


def read_members(file: int, size: int) -> Iterator[Member]:
    """The regular members of an open tar, in order; takes time in proportion to the number of headers.

    Directories, links, devices and sparse files are passed over, and so are pax headers about all files.

    Args:
        file: Descriptor of the open tar.
        size: Of the tar in bytes.

    Raises:
        DamagedTar: A header is invalid, a member reaches beyond the end, or the end mark is missing.
    """
    position = 0
    name: bytes | None = None
    records: dict[bytes, bytes] = {}
    while (block := os.pread(file, BLOCK, position)) != bytes(BLOCK):
        header = _parse(block, position)
        start = position + BLOCK
        while header.more:
            more = os.pread(file, BLOCK, start)
            start += BLOCK
            header = header._replace(more=len(more) == BLOCK and more[504] != 0)
        if header.kind in (_LONG_NAME, _LONG_LINK, *_PAX, _PAX_GLOBAL):
            if header.size > EXTENDED_LIMIT:
                raise DamagedTar(f"an extended header above {EXTENDED_LIMIT >> 20} MiB", position)
            data = os.pread(file, header.size, start)
            if len(data) < header.size:
                raise DamagedTar("cut off inside the header", position)
            if header.kind == _LONG_NAME:
                name = data.partition(b"\0")[0]
            elif header.kind in _PAX:
                records = _pax(data, position)
            position = start + _padded(header.size)
            continue
        named = records.get(b"path", header.name if name is None else name)
        length = _decimal(records[b"size"], position) if b"size" in records else header.size
        if header.kind in _WITHOUT_DATA or (header.kind == b"\0" and named.endswith(b"/")):
            position = start
        else:
            if start + length > size:
                raise DamagedTar(f"cut off inside {_text(named)[:100]!r}", start)
            if header.kind in _REGULAR and not any(key.startswith(b"GNU.sparse.") for key in records):
                yield Member(_text(named), start, length)
            position = start + _padded(length)
        name, records = None, {}


def _parse(block: bytes, position: int) -> _Header:
    """One block as a header (POSIX ustar, GNU)."""
    if not block:
        raise DamagedTar("no end of archive", position)
    if len(block) < BLOCK:
        raise DamagedTar("cut off inside the header", position)
    checksum = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    stored = _number(block[148:156], position)
    if stored != checksum:
        # Some old writers add the bytes up as signed numbers.
        negative = sum(byte > 127 for byte in block) - sum(byte > 127 for byte in block[148:156])
        if stored != checksum - 256 * negative:
            raise DamagedTar("a header with a wrong checksum", position)
    name, kind = block[:100].partition(b"\0")[0], block[156:157]
    prefix = block[345:500].partition(b"\0")[0]
    if prefix and kind not in (_LONG_NAME, _LONG_LINK, _SPARSE):
        name = prefix + b"/" + name
    size = _number(block[124:136], position)
    return _Header(name, size, kind, kind == _SPARSE and block[482] != 0)


def _number(field: bytes, position: int) -> int:
    """A number of a header: octal digits, or base 256 behind a byte 128 (GNU)."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    match = _OCTAL.fullmatch(field.partition(b"\0")[0])
    if match is None:
        raise DamagedTar("an invalid number in the header", position)
    return int(match[1] or b"0", 8)


def _pax(data: bytes, position: int) -> dict[bytes, bytes]:
    """The records of a pax header: `length key=value`, each ended by a line break."""
    records: dict[bytes, bytes] = {}
    start = 0
    while start < len(data):
        space = data.find(b" ", start, start + 9)
        length = _decimal(data[start : max(start, space)], position)
        record = data[space + 1 : start + length]
        key, equals, value = record.partition(b"=")
        if not equals or not value.endswith(b"\n") or start + length > len(data):
            raise DamagedTar("an invalid pax header", position)
        records[key] = value[:-1]
        start += length
    return records


def _decimal(digits: bytes, position: int) -> int:
    if not digits.isdigit() or len(digits) > 19:
        raise DamagedTar("an invalid pax header", position)
    return int(digits)


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")
