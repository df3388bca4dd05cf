"""Fingerprints against brute force, and on copies of photographs against other photographs."""

from __future__ import annotations

import io
from collections.abc import Callable
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from mmlab.data.likeness import (
    PICTURE_BITS,
    PICTURE_SHADES,
    PictureMark,
    near_pictures,
    near_texts,
    picture_mark,
    text_sketch,
    words,
)

Edit = Callable[[Image.Image], Image.Image]


def compressed(image: Image.Image, kind: str, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, kind, quality=quality)
    return Image.open(file).convert("RGB")


EDITS: dict[str, Edit] = {
    "jpeg": lambda image: compressed(image, "JPEG", 40),
    "webp": lambda image: compressed(image, "WEBP", 50),
    "half": lambda image: image.resize((image.width // 2, image.height // 2)),
    "double": lambda image: image.resize((image.width * 2, image.height * 2), Image.Resampling.BICUBIC),
    "square": lambda image: image.resize((256, 256)),
    "half and jpeg": lambda image: compressed(image.reduce(2), "JPEG", 50),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.05),
}


@pytest.fixture(scope="module")
def photographs(public_data: Path) -> list[Image.Image]:
    paths = sorted((public_data / "coco-mini").glob("*/*.jpg"))
    assert paths, f"{public_data} lacks coco-mini"
    return [Image.open(path).convert("RGB") for path in paths]


def mark(image: Image.Image) -> PictureMark:
    return picture_mark(np.array(image))


def alike(marks: list[PictureMark]) -> set[tuple[int, int]]:
    hashes = np.array([m.hash for m in marks], np.uint64)
    found = near_pictures(hashes, np.array([m.colours for m in marks], np.uint8))
    return {(int(a), int(b)) for a, b in found}


def test_copies_are_found_and_other_photographs_are_not(photographs: list[Image.Image]) -> None:
    marks = [mark(photograph) for photograph in photographs]
    assert alike(marks) == set()
    for name, edit in EDITS.items():
        copies = [mark(edit(photograph)) for photograph in photographs]
        expected = {(number, number + len(marks)) for number in range(len(marks))}
        found = alike([*marks, *copies])
        assert found <= expected, name
        assert len(found) >= 0.98 * len(expected), name


def test_mirrored_or_cropped_is_another_picture(photographs: list[Image.Image]) -> None:
    some = photographs[:10]
    mirrored = [photograph.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for photograph in some]
    assert alike([mark(image) for image in [*some, *mirrored]]) == set()


def test_colour_tells_equal_shapes_apart() -> None:
    def square(colour: tuple[int, int, int]) -> Image.Image:
        image = Image.new("RGB", (64, 64), "white")
        image.paste(colour, (10, 10, 45, 45))
        return image

    marks = [mark(square(colour)) for colour in ((200, 30, 30), (200, 32, 30), (30, 90, 30))]
    assert marks[0].hash == marks[2].hash
    assert alike(marks) == {(0, 1)}


def test_hash_is_the_definition(photographs: list[Image.Image]) -> None:
    """The signs of the cosine transform, written out as its sum, against their median."""
    pixels = np.array(photographs[0])
    grey = np.asarray(Image.fromarray(pixels).resize((32, 32), Image.Resampling.BOX).convert("L"), float)

    def wave(frequency: int) -> np.ndarray:
        return np.cos(np.pi * frequency * (2 * np.arange(32) + 1) / 64)

    low = np.array(
        [[(grey * np.outer(wave(u), wave(v))).sum() for v in range(1, 9)] for u in range(1, 9)]
    ).ravel()
    expected = int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "little")
    # reducing_gap shrinks by whole factors first: a bit or two near the median may differ.
    assert (expected ^ picture_mark(pixels).hash).bit_count() <= 2


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 60))
def test_no_near_picture_is_missed(seed: int, count: int) -> None:
    """Against all pairs, on hashes that lie close together."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 2**64, 5, dtype=np.uint64)
    hashes = base[rng.integers(0, 5, count)]
    for _ in range(4):
        hashes ^= np.uint64(1) << rng.integers(0, 64, count, dtype=np.uint64)
    colours = rng.integers(0, 40, (count, 48), dtype=np.uint8)
    expected = [
        (a, b)
        for a, b in combinations(range(count), 2)
        if int(hashes[a] ^ hashes[b]).bit_count() <= PICTURE_BITS
        and np.abs(colours[a].astype(int) - colours[b]).mean() < PICTURE_SHADES
    ]
    assert near_pictures(hashes, colours).tolist() == [list(pair) for pair in expected]


def test_thousands_that_look_alike_are_all_linked_and_cost_no_square() -> None:
    hashes = np.arange(4_000, dtype=np.uint64) << np.uint64(40)
    pairs = near_pictures(hashes, np.zeros((4_000, 48), np.uint8))
    assert len(np.unique(pairs)) == 4_000
    assert len(pairs) <= 34 * 4_000


def jaccard(one: str, two: str) -> float:
    def shingles(text: str) -> set[tuple[str, ...]]:
        parts = words(text)
        return {(w,) for w in parts} | set(pairwise(parts))

    a, b = shingles(one), shingles(two)
    return len(a & b) / len(a | b)


VOCABULARY = [f"word{n}" for n in range(2000)]


def text_of(rng: np.random.Generator, length: int = 40) -> list[str]:
    return [VOCABULARY[n] for n in rng.integers(0, len(VOCABULARY), length)]


def test_sketches_estimate_the_share_in_common() -> None:
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(200):
        first = text_of(rng)
        second = list(first)
        for place in rng.integers(0, len(first), rng.integers(0, 12)):
            second[place] = "other"
        same = (text_sketch(first) == text_sketch(second)).mean()
        errors.append((same - 1 / 256) / (1 - 1 / 256) - jaccard(" ".join(first), " ".join(second)))
    assert abs(np.mean(errors)) < 0.015  # no bias: 0.06 / sqrt(200) = 0.004
    assert np.std(errors) < 0.075  # sqrt(J (1 - J) / 64) is 0.0625 at most


def test_near_texts_are_found_and_others_are_not() -> None:
    rng = np.random.default_rng(1)
    texts = [text_of(rng) for _ in range(300)]
    copies = [[*text, "again"] for text in texts]  # shares more than 0.96
    far = [[*text[:20], *text_of(rng, 20)] for text in texts]  # shares about a third
    sketches = np.array([text_sketch(text) for text in [*texts, *copies, *far]])
    expected = [[number, number + 300] for number in range(300)]
    assert near_texts(sketches).tolist() == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A red,  CAR!", ["a", "red", "car"]),
        ("Straße ﬁne", ["strasse", "fine"]),
        ("…", ["..."]),
        ("don't", ["don", "t"]),
        ("一只猫", ["一只猫"]),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_nothing_has_no_neighbours() -> None:
    for count in (0, 1):
        assert near_pictures(np.zeros(count, np.uint64), np.zeros((count, 48), np.uint8)).shape == (0, 2)
        assert near_texts(np.zeros((count, 64), np.uint8)).shape == (0, 2)
