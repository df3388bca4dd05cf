"""Generated scenes: the same every time, answers as a person would count them, what pictures show."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from releases import about, read_shards

from mmlab.sources.sort_of_clevr import (
    COLOURS,
    REACH,
    SHAPES,
    SIDE,
    SortOfClevr,
    Thing,
    answer,
    describe,
    draw,
    encode,
    make_scene,
)

SCENE = [
    Thing(10, 10, "square"), Thing(30, 10, "circle"), Thing(70, 70, "square"), Thing(10, 45, "circle"),
    Thing(60, 40, "square"), Thing(40, 60, "square"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("colour", "kind", "subtype", "right"),
    [
        (0, "non_relational", 0, "square"),
        (0, "non_relational", 1, "yes"),
        (2, "non_relational", 1, "no"),
        (2, "non_relational", 2, "no"),
        (0, "relational", 0, "circle"),
        (0, "relational", 1, "square"),
        (0, "relational", 2, "4"),
        (1, "relational", 2, "2"),
    ],
)
def test_answers(colour: int, kind: str, subtype: int, right: str) -> None:
    assert answer(SCENE, colour, kind, subtype) == right


@given(st.integers(0, 2**31))
def test_scenes(seed: int) -> None:
    things = make_scene(Random(seed))
    assert len(things) == 6
    for number, one in enumerate(things):
        assert REACH <= one.x < SIDE - REACH
        assert REACH <= one.y < SIDE - REACH
        for other in things[:number]:
            assert (one.x - other.x) ** 2 + (one.y - other.y) ** 2 >= (2 * REACH) ** 2
    rows = describe(things)
    assert np.abs(rows[:, :2]).max() <= 1
    np.testing.assert_array_equal(rows[:, 2:8], np.eye(6))
    with Image.open(io.BytesIO(draw(things))) as image:
        assert image.size == (SIDE, SIDE)
        for thing, colour in zip(things, COLOURS.values(), strict=True):
            assert image.getpixel((thing.x, thing.y)) == colour
            corner = image.getpixel((thing.x - REACH, thing.y - REACH))
            # The corner of a later square may lie over it.
            assert corner != colour if thing.shape == "circle" else corner != (255, 255, 255)


def test_questions_in_numbers() -> None:
    codes = {
        tuple(encode(colour, kind, subtype))
        for colour in range(6)
        for kind in ("relational", "non_relational")
        for subtype in range(3)
    }
    assert len(codes) == 36
    assert {sum(code) for code in codes} == {3}


def test_samples(tmp_path: Path) -> None:
    folder = SortOfClevr(train=30, val=1, test=1, out=tmp_path / "first").prepare()
    train = read_shards(folder, "train")
    assert len(train) == 600
    told = [about(members) for members in train.values()]
    assert Counter(one["kind"] for one in told) == {"relational": 300, "non_relational": 300}
    answers = {one["answer"] for one in told}
    assert {"yes", "no", *SHAPES} < answers <= {"yes", "no", *SHAPES, *"123456"}
    members = train["train-00003-07"]
    objects = np.load(io.BytesIO(members["objects.npy"]))
    question = np.load(io.BytesIO(members["question.npy"]))
    assert (objects.shape, question.shape) == ((6, 10), (1, 11))
    # The question can be answered from the numbers, in whatever order the objects stand.
    colour, kind, subtype = (int(part.argmax()) for part in np.split(question[0], [6, 8]))
    ordered = objects[objects[:, 2:8].argmax(axis=1).argsort()]
    pixels = np.rint((ordered[:, :2] + 1) * SIDE / 2).astype(int)
    shapes = ordered[:, 8:].argmax(axis=1)
    scene = [Thing(int(x), int(y), SHAPES[shape]) for (x, y), shape in zip(pixels, shapes, strict=True)]
    assert answer(scene, colour, ("non_relational", "relational")[kind], subtype) == told[67]["answer"]
    again = SortOfClevr(train=30, val=1, test=1, out=tmp_path / "second").prepare()
    assert (again / "train-000000.tar").read_bytes() == (folder / "train-000000.tar").read_bytes()
    blind = SortOfClevr(train=30, val=1, test=1, pictures=False, out=tmp_path / "blind").prepare()
    assert "png" not in read_shards(blind, "train")["train-00003-07"]


def test_no_picture_at_all() -> None:
    with pytest.raises(ValueError, match="val is 0: every split needs at least one picture"):
        SortOfClevr(val=0)
