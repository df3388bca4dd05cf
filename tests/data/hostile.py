"""Tars that want to do harm: built byte by byte, and small good ones broken at random."""

from __future__ import annotations

import gzip
import io
import json
import random
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
import soundfile
from PIL import Image

BLOCK = 512
END = bytes(2 * BLOCK)


def header(
    name: bytes,
    size: int | bytes = 0,
    kind: bytes = b"0",
    *,
    link: bytes = b"",
    prefix: bytes = b"",
    tail: bytes = b"",
) -> bytes:
    """A header with a right checksum, whatever it says; `size` as bytes is taken as it is."""
    field = b"%011o\0" % size if isinstance(size, int) else size
    block = bytearray(BLOCK)
    for start, value in [
        (0, name[:100]), (100, b"0000644\0"), (108, b"0000000\0"), (116, b"0000000\0"), (124, field[:12]),
        (136, b"00000000000\0"), (148, b" " * 8), (156, kind), (157, link[:100]), (257, b"ustar\00000"),
        (345, prefix[:155]), (345, tail),
    ]:  # fmt: skip
        block[start : start + len(value)] = value
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def member(name: bytes, data: bytes, kind: bytes = b"0") -> bytes:
    return header(name, len(data), kind) + padded(data)


def record(key: bytes, value: bytes) -> bytes:
    """A record of a pax header, whose length counts its own digits."""
    length = len(key) + len(value) + 3
    while len(str(length)) + len(key) + len(value) + 3 != length:
        length = len(str(length)) + len(key) + len(value) + 3
    return b"%d %s=%s\n" % (length, key, value)


def base256(number: int) -> bytes:
    return (number + (1 << 96 if number < 0 else 1 << 95)).to_bytes(12, "big")


def image(format: str, mode: str = "RGB", size: tuple[int, int] = (20, 16)) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, format)
    return buffer.getvalue()


def sound(
    format: str, wave: np.ndarray | None = None, rate: int = 16_000, subtype: str | None = None
) -> bytes:
    buffer = io.BytesIO()
    wave = np.sin(np.arange(800) / 9) if wave is None else wave
    soundfile.write(buffer, wave, rate, format=format, subtype=subtype)
    return buffer.getvalue()


def array(value: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, value)
    return buffer.getvalue()


@cache
def good_samples() -> tuple[tuple[bytes, bytes], ...]:
    """Members of two samples of every modality."""
    text = json.dumps({"caption": "a dog", "captions": ["a", "b"], "deep": {"x": [1, None]}}).encode()
    signal = array(np.arange(12, dtype=np.float32).reshape(4, 3))
    return (
        (b"a.jpg", image("JPEG")), (b"a.txt", "a réd bird".encode()), (b"a.json", text),
        (b"a.wav", sound("wav")), (b"a.npy", signal),
        (b"b.png", image("PNG", "RGBA")), (b"b.txt", b"a dog"), (b"b.flac", sound("flac")),
        (b"b.npy", signal),
    )  # fmt: skip


def good(name: bytes = b"", data: bytes = b"") -> bytes:
    """A good tar; a member may be replaced, or come to one sample more."""
    members = dict(good_samples())
    if name:
        members[name] = data
    return b"".join(member(name, data) for name, data in members.items()) + END


class Mutation(NamedTuple):
    """A tar that once was good."""

    name: str
    tar: bytes


def mutations(seed: int, count: int) -> Iterator[Mutation]:
    """Good tars broken at random; the same for the same seed."""
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        kind = rng.choice(list(_BREAK))
        yield Mutation(f"{kind} {seed}/{number}", _BREAK[kind](rng))


def _truncated(rng: random.Random) -> bytes:
    whole = good()
    return whole[: rng.randrange(len(whole))]


def _flip(data: bytearray, rng: random.Random, start: int, stop: int) -> None:
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(start, stop)] ^= 1 << rng.randrange(8)


def _flipped_anywhere(rng: random.Random) -> bytes:
    data = bytearray(good())
    _flip(data, rng, 0, len(data))
    return bytes(data)


def _flipped_member(rng: random.Random) -> bytes:
    """Bits flipped in one member's content only, so that every reader gets its share."""
    name, content = rng.choice(good_samples())
    data = bytearray(content)
    _flip(data, rng, 0, min(len(data), rng.choice([16, 64, 1024, len(data)])))
    return good(name, bytes(data))


def _cut_member(rng: random.Random) -> bytes:
    name, content = rng.choice(good_samples())
    return good(name, content[: rng.randrange(len(content))])


def _spliced_member(rng: random.Random) -> bytes:
    """A part of one member inside another: pictures called sounds, text in the middle of arrays."""
    name, content = rng.choice(good_samples())
    _, other = rng.choice(good_samples())
    start, stop = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    return good(name, content[:start] + other[: rng.randrange(len(other) + 1)] + content[stop:])


def _foreign_numbers(rng: random.Random) -> bytes:
    """Four or eight bytes of a member's header overwritten with numbers at the edge of what they can say."""
    name, content = rng.choice(good_samples())
    data, width = bytearray(content), rng.choice([1, 2, 4, 8])
    start = rng.randrange(max(1, min(len(data) - width, 128)))
    number = rng.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1, 0x80, 0xFFFF])
    data[start : start + width] = (number % 256**width).to_bytes(width, rng.choice(["big", "little"]))
    return good(name, bytes(data))


def _flipped_header(rng: random.Random) -> bytes:
    """Bits flipped in one header, with the checksum made right again."""
    parts = [(header(name, len(data)), padded(data)) for name, data in good_samples()]
    chosen = rng.randrange(len(parts))
    block = bytearray(parts[chosen][0])
    _flip(block, rng, *rng.choice([(0, 10), (100, 148), (124, 136), (156, 157), (156, BLOCK)]))
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    parts[chosen] = (bytes(block), parts[chosen][1])
    return b"".join(head + body for head, body in parts) + END


_KINDS = tuple(bytes([byte]) for byte in b"\0001234567LKSxgXVMAN")
_NAMES = (
    b"../../x.txt", b"/etc/x.txt", b"a\nb.txt", b"\xff\xfe.txt", b"", b".", b"..", b"a/", b"x.", b"__x.txt",
    b"\x1b[2J.txt", b"a.jpg", b"x" * 100, b"c.txt", b"con:.txt", b"a.b.c.d.npy",
)  # fmt: skip


def _odd_members(rng: random.Random) -> bytes:
    """Members of any kind, name and size, with right checksums, between good ones."""
    sizes = (
        0,
        1,
        511,
        512,
        513,
        8**11 - 1,
        base256(-1),
        base256(-512),
        base256(2**62),
        base256(2**94),
        b" " * 12,
    )
    parts = [member(name, data) for name, data in good_samples()]
    for _ in range(rng.randint(1, 3)):
        size = rng.choice(sizes)
        head = header(
            rng.choice(_NAMES), size, rng.choice(_KINDS), link=rng.choice([b"", b"a.jpg", b"/etc/passwd"]),
            prefix=rng.choice([b"", b"", b"../..", b"p" * 155]), tail=rng.choice([b"", rng.randbytes(140)]),
        )  # fmt: skip
        body = padded(rng.randbytes(size)) if isinstance(size, int) and size < 1024 else b""
        parts.insert(rng.randrange(len(parts) + 1), head + body)
    return b"".join(parts) + END


def _odd_pax(rng: random.Random) -> bytes:
    """Records of pax headers that say odd things of the member behind."""
    keys = (
        b"path", b"size", b"GNU.sparse.map", b"GNU.sparse.size", b"GNU.sparse.major", b"linkpath",
        b"hdrcharset", b"GNU.sparse.name", b"mtime", b"GNU.sparse.minor", b"",
    )  # fmt: skip
    values = (
        b"../../x.txt", b"/x.txt", b"-1", b"0", b"1e9", b"9" * 30, b"\xff", b"a\0b.txt", b"BINARY", b"",
        b"1,2,3", b"c.txt", b"1", b"\n", b"7" * 5000,
    )  # fmt: skip
    data = b"".join(record(rng.choice(keys), rng.choice(values)) for _ in range(rng.randint(1, 4)))
    if rng.random() < 0.3:
        changed = bytearray(data)
        _flip(changed, rng, 0, len(changed))
        data = bytes(changed)
    parts = [member(name, data) for name, data in good_samples()]
    parts.insert(rng.randrange(len(parts)), member(b"pax", data, rng.choice([b"x", b"x", b"g", b"X", b"L"])))
    return b"".join(parts) + END


_BREAK: dict[str, Callable[[random.Random], bytes]] = {
    "truncated": _truncated,
    "flipped anywhere": _flipped_anywhere,
    "flipped member": _flipped_member,
    "cut member": _cut_member,
    "spliced member": _spliced_member,
    "foreign numbers": _foreign_numbers,
    "flipped header": _flipped_header,
    "odd members": _odd_members,
    "odd pax": _odd_pax,
}

SPARSE = header(b"c.txt", 512, b"S", tail=bytes(137) + b"\1")
CRAFTED: dict[str, bytes] = {
    "nothing": b"",
    "one byte": b"\0",
    "zeros alone": END,
    "no end": good()[: -2 * BLOCK],
    "gzip": gzip.compress(good()),
    "a directory's name": member(b"a.txt/", b"", b"5") + good(),
    # tarfile up to 3.11.13 walks backwards here, and so for ever.
    "goes backwards": member(b"c.txt", b"x") + header(b"d.txt", base256(-1024)) + good(),
    "goes backwards by pax": member(b"p", record(b"size", b"-2048"), b"x") + good(),
    # tarfile reads these whole: gigabytes.
    "pax of gigabytes": header(b"p", 8**11 - 1, b"x") + good(),
    "long name of negative length": header(b"p", base256(-1), b"L") + good(),
    # tarfile up to 3.11.9 searches this in quadratic time: hours.
    "pax of digits": member(b"p", b"1" * 2**20, b"x") + good(),
    "pax record of no length": member(b"p", b"0 path=x\n", b"x") + good(),
    "pax record beyond": member(b"p", b"999 path=x\n", b"x") + good(),
    "pax path without end": member(b"p", b"9 path=xyz", b"x") + good(),
    # tarfile follows these by recursion: RecursionError.
    "chain of long names": member(b"n", b"x.txt", b"L") * 3000 + good(),
    "chain of pax": member(b"n", record(b"path", b"x.txt"), b"x") * 3000 + good(),
    "chain of globals": member(b"n", record(b"path", b"x.txt"), b"g") * 3000 + good(),
    "long name at the end": good()[: -2 * BLOCK] + member(b"n", b"x.txt", b"L"),
    # tarfile looks for the end of this map behind the end of the file: IndexError.
    "sparse without end": SPARSE + (bytes(504) + b"\1" + bytes(7)) * 9,
    "sparse 1.0 without end": member(b"p", record(b"GNU.sparse.major", b"1"), b"x") + header(b"c.txt", 9),
    "names of a megabyte": b"".join(
        member(b"p", record(b"path", b"%d" % n + b"\xff" * 500_000 + b".txt"), b"x") + member(b"x", b"t")
        for n in range(3)
    ) + END,
    "thousands of members of one key": b"".join(header(b"c.%d" % n) for n in range(5000)) + END,
    "a thousand times one name": header(b"c.txt") * 1000 + END,
}  # fmt: skip
