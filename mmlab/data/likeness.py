"""Fingerprints of pictures and texts, and the search for those that are nearly alike."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator
from itertools import combinations, pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8, UInt64
from PIL import Image

PICTURE_BITS = 4
"""Pictures are alike whose 64-bit hashes differ in at most so many bits (half of the bits are set, so an even
number), ..."""
PICTURE_SHADES = 16.0
"""... and whose colours, over a grid of 4 x 4, differ by less than this on average, of 255."""
TEXT_SHARE = 0.8
"""Texts are alike that share this part of their words and pairs of neighbouring words (Jaccard index)."""
SKETCH = 64
"""Bytes of a text's sketch."""
_NEIGHBOURS = 32
"""Rows that one row is compared with, in each of the sorted lists, at most."""
_PARTNERS = 32
"""Rows that are alike and have so many partners already are not compared with each other any more."""
_SIDE = 32
_MULTIPLY = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def exact_hash(data: bytes) -> int:
    """64 bits of BLAKE2b: equal for equal bytes, and else not but once in 2^64 pairs."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def text_hash(text: str) -> int:
    """The same of a text."""
    return exact_hash(text.encode("utf-8", "surrogatepass"))


class PictureMark(NamedTuple):
    """What a picture looks like, in 56 bytes."""

    hash: int
    """64 bits: which of the lowest frequencies are stronger than their median."""
    colours: UInt8[np.ndarray, " 48"]
    """Mean red, green and blue over a grid of 4 x 4."""


def picture_mark(pixels: UInt8[np.ndarray, "height width 3"]) -> PictureMark:
    """The perceptual hash of a picture (pHash; Zauner 2010, section 3.2.1), and its coarse colours.

    The hash is of the discrete cosine transform of the grey picture at 32 x 32: the signs of its 8 x 8 lowest
    frequencies, without the mean, against their median. Size, compression and brightness hardly change it;
    a mirrored or cropped picture is another one.
    """
    # A picture larger than needed is shrunk by whole factors first, which takes less time.
    small = Image.fromarray(pixels).resize((_SIDE, _SIDE), Image.Resampling.BOX, reducing_gap=2.0)
    grey = np.asarray(small.convert("L"), dtype=np.float64)
    low = (_COSINES @ grey @ _COSINES.T).ravel()
    bits = low > np.median(low)
    shape = (4, _SIDE // 4, 4, _SIDE // 4, 3)
    colours = np.asarray(small, dtype=np.float64).reshape(shape).mean(axis=(1, 3))
    return PictureMark(
        int.from_bytes(np.packbits(bits).tobytes(), "little"), colours.round().astype(np.uint8).ravel()
    )


def _cosines() -> np.ndarray:
    """Rows 1 to 8 of the cosine transform (DCT-II): all but the mean."""
    rows, steps = np.arange(1, 9)[:, None], np.arange(_SIDE)[None]
    return np.cos(np.pi * rows * (2 * steps + 1) / (2 * _SIDE))


_COSINES = _cosines()


def words(text: str) -> list[str]:
    """The words of a text but for case, punctuation and the form of its characters (NFKC)."""
    normal = unicodedata.normalize("NFKC", text).casefold()
    return re.findall(r"\w+", normal) or [normal.strip()]


def text_sketch(parts: list[str]) -> UInt8[np.ndarray, " 64"]:
    """The MinHash of a text's words and pairs of neighbours (Broder 1997): a byte of each of 64 hashes.

    Two sketches agree in about the share J of the shingles that the texts have in common, and by chance in
    1/256 of the rest (b-bit minwise hashing; Li and König 2010); the standard error at J = 0.8 is 0.05.
    """
    shingles = {*parts, *(f"{first} {second}" for first, second in pairwise(parts))}
    marks = np.array([text_hash(shingle) for shingle in shingles], np.uint64)
    sketch: np.ndarray = _mix(marks[None] ^ _SEEDS[:, None]).min(axis=1) & np.uint64(0xFF)
    return sketch.astype(np.uint8)


def _mix(word: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014)."""
    word = (word ^ (word >> np.uint64(30))) * _MULTIPLY[0]
    word = (word ^ (word >> np.uint64(27))) * _MULTIPLY[1]
    mixed: np.ndarray = word ^ (word >> np.uint64(31))
    return mixed


_SEEDS = _mix(np.arange(1, SKETCH + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))


def near_pictures(
    hashes: UInt64[np.ndarray, " rows"], colours: UInt8[np.ndarray, "rows 48"]
) -> Int64[np.ndarray, "pairs 2"]:
    """Pairs of rows that look alike, the smaller row first, sorted.

    Hashes that differ in at most 5 bits are equal in at least 3 of their 8 bytes: for each of the 56 ways to
    choose three bytes the rows are sorted by them, and those that agree are compared. No pair is missed,
    unless more than 32 rows agree in three bytes: then a row is compared with the 32 that follow it in the
    order of all its bytes. Time grows as n log n; memory beside the marks is about 50 bytes a row, and 8 for
    each pair found, of which a row has some 32.
    """
    parts = np.ascontiguousarray(hashes, dtype="<u8").view(np.uint8).reshape(-1, 8)
    links = _Links(len(hashes))
    for chosen in combinations(range(8), 3):
        rest = [byte for byte in range(8) if byte not in chosen]
        ordered = np.ascontiguousarray(parts[:, [*chosen, *rest]]).view(">u8").ravel().astype(np.uint64)
        for first, second in links.open(_neighbours(ordered, shift=40)):
            near = np.bitwise_count(hashes[first] ^ hashes[second]) <= PICTURE_BITS
            first, second = first[near], second[near]
            apart = np.abs(colours[first].astype(np.int16) - colours[second]).mean(axis=1)
            links.add(first[apart < PICTURE_SHADES], second[apart < PICTURE_SHADES])
    return links.pairs()


def near_texts(sketches: UInt8[np.ndarray, "rows 64"]) -> Int64[np.ndarray, "pairs 2"]:
    """Pairs of rows whose texts are alike by their sketches, the smaller row first, sorted.

    Rows that agree in one of 16 bands of 4 bytes are compared, as :func:`near_pictures` does it: a pair that
    shares 0.8 of its shingles is missed once in 5,000 times.
    """
    links = _Links(len(sketches))
    for band in range(16):
        columns = np.arange(4 * band, 4 * band + 8) % SKETCH
        ordered = np.ascontiguousarray(sketches[:, columns]).view(">u8").ravel().astype(np.uint64)
        for first, second in links.open(_neighbours(ordered, shift=32)):
            same = (sketches[first] == sketches[second]).mean(axis=1)
            share = (same - 1 / 256) / (1 - 1 / 256)  # without those that agree by chance
            links.add(first[share >= TEXT_SHARE], second[share >= TEXT_SHARE])
    return links.pairs()


def _neighbours(words: UInt64[np.ndarray, " rows"], *, shift: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows whose words agree in all but the lowest `shift` bits, near each other in sorted order."""
    order = np.argsort(words, kind="stable")
    prefix = words[order] >> np.uint64(shift)
    for distance in range(1, min(_NEIGHBOURS, len(words) - 1) + 1):
        same = np.flatnonzero(prefix[distance:] == prefix[:-distance])
        if len(same) == 0:
            return
        yield order[same], order[same + distance]


class _Links:
    """Pairs of rows, each once; not all of them among rows that have many: a thousand frames of one film."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.codes = np.empty(0, dtype=np.int64)
        """Both rows as one number, sorted: of the lists that are done."""
        self.new: list[np.ndarray] = []
        self.partners = np.zeros(rows, dtype=np.int32)

    def open(
        self, candidates: Iterator[tuple[np.ndarray, np.ndarray]]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Candidates of one sorted list of which one row, at least, has few partners yet."""
        for first, second in candidates:
            few = (self.partners[first] < _PARTNERS) | (self.partners[second] < _PARTNERS)
            if few.any():
                yield first[few], second[few]
        if self.new:
            self.codes = np.sort(np.concatenate([self.codes, *self.new]))
            self.new = []

    def add(self, first: np.ndarray, second: np.ndarray) -> None:
        """Keep pairs that are not kept yet."""
        # A list gives each pair once, so that only those of earlier lists can be here already.
        codes = np.minimum(first, second) * self.rows + np.maximum(first, second)
        at = np.searchsorted(self.codes, codes)
        known = np.zeros(len(codes), dtype=bool)
        inside = at < len(self.codes)
        known[inside] = self.codes[at[inside]] == codes[inside]
        self.new.append(codes[~known])
        for rows in np.divmod(codes[~known], max(1, self.rows)):
            np.add.at(self.partners, rows, 1)

    def pairs(self) -> Int64[np.ndarray, "pairs 2"]:
        """The smaller row first, sorted."""
        return np.stack(np.divmod(self.codes, max(1, self.rows)), axis=1)
