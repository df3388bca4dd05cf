"""Sort-of-CLEVR: squares and circles, and questions about one of them or how it stands to others."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32
from PIL import Image, ImageDraw

from mmlab.assets.progress import progress
from mmlab.data.shards import write_shards
from mmlab.data.source import Source
from mmlab.sources.prepared import Prepared

_FORMAT = 1
"""Raised when what is written changes."""
COLOURS = {
    "red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "orange": (255, 156, 0),
    "gray": (128, 128, 128), "yellow": (255, 255, 0),
}  # fmt: skip
SHAPES = ("square", "circle")
SIDE = 75
"""Of a picture, in pixels."""
REACH = 5
"""From the middle of a thing to its edge, in pixels; middles are twice as far apart at least."""
QUESTIONS = {
    "non_relational": (
        "What is the shape of the {colour} object?",
        "Is the {colour} object on the left?",
        "Is the {colour} object on the top?",
    ),
    "relational": (
        "What is the shape of the object that is closest to the {colour} object?",
        "What is the shape of the object that is furthest from the {colour} object?",
        "How many objects have the shape of the {colour} object?",
    ),
}
"""By kind; the place in this list is the subtype."""
EACH = 10
"""Questions of each kind about a picture."""


class Thing(NamedTuple):
    """An object of a scene; its place in the scene is its colour's."""

    x: int
    """Of its middle, in pixels from the left."""
    y: int
    """From the top."""
    shape: str


class SortOfClevr(Source):
    """Questions about six objects, half of them relational (Santoro et al. 2017, arXiv:1706.01427).

    The data set is generated, by the settings of the paper: 10,000 pictures of 75 x 75 pixels, six objects of
    different colours, each a square or a circle; ten relational and ten other questions about each picture,
    ten possible answers (yes, no, square, circle, 1 to 6). A sample is one question: `json` with `question`,
    `answer`, `kind` (relational, non_relational), `question_id`, `group` (the picture); `question.npy`, the
    question in 11 numbers (a colour, a kind and a subtype, one of each); `objects.npy`, [6, 10], a row for
    each object in random order (x, y from -1 to 1, colour, shape); and the picture as `png`.
    """

    name = "sort_of_clevr"

    def __init__(
        self,
        *,
        train: int = 9600,
        val: int = 200,
        test: int = 200,
        pictures: bool = True,
        seed: int = 0,
        out: Path | None = None,
    ) -> None:
        """Settings.

        Args:
            train: Number of pictures, with 20 questions each.
            val: Number of pictures.
            test: Number of pictures.
            pictures: Whether to write them, or only the descriptions of their objects.
            seed: Other seeds, other scenes and questions.
            out: Folder to write; None: one in the cache directory.

        Raises:
            ValueError: A split is empty.
        """
        self.counts = {"train": train, "val": val, "test": test}
        for split, number in self.counts.items():
            if number < 1:
                raise ValueError(f"{split} is {number}: every split needs at least one picture.")
        self.pictures = pictures
        self.seed = seed
        settings = {"counts": self.counts, "pictures": pictures, "seed": seed, "format": _FORMAT}
        self._prepared = Prepared(self.name, settings, out=out)

    def prepare(self) -> Path:
        """Write the shards, unless they are there.

        Raises:
            FetchError: The disk is full.
            ValueError: `out` holds something else.
        """
        with self._prepared.lock():
            return self._prepared.find(None) or self._prepared.build("1", self._write)

    def _write(self, folder: Path) -> dict[str, Any]:
        for split, number in self.counts.items():
            with progress(f"writing {split}", total=number * 2 * EACH, in_bytes=False) as show:
                write_shards(_counted(self.samples(split), show), folder, split)
        samples = {split: {"samples": number * 2 * EACH} for split, number in self.counts.items()}
        return {"splits": samples}

    def samples(self, split: str) -> Iterator[dict[str, Any]]:
        """The samples of a split, as they are written: key and bytes by extension."""
        for number in range(self.counts[split]):
            rng = Random(f"{self.seed}/{split}/{number}")
            things = make_scene(rng)
            picture = {"png": draw(things)} if self.pictures else {}
            for turn in range(2 * EACH):
                kind = tuple(QUESTIONS)[turn % 2]
                colour, subtype = int(rng.random() * len(COLOURS)), int(rng.random() * 3)
                order = sorted(range(len(things)), key=lambda _: rng.random())
                about = {
                    "question": QUESTIONS[kind][subtype].format(colour=tuple(COLOURS)[colour]),
                    "answer": answer(things, colour, kind, subtype), "kind": kind,
                    "question_id": f"{split}-{number}-{turn}", "group": f"{split}-{number}",
                }  # fmt: skip
                yield {
                    "__key__": f"{split}-{number:05d}-{turn:02d}",
                    **picture,
                    "objects.npy": _npy(describe(things)[order]),
                    "question.npy": _npy(encode(colour, kind, subtype)[None]),
                    "json": json.dumps(about).encode(),
                }


def make_scene(rng: Random) -> list[Thing]:
    """Six objects, one of each colour, their centres apart; the corners of squares may touch others."""
    things: list[Thing] = []
    while len(things) < len(COLOURS):
        x, y = (REACH + int(rng.random() * (SIDE - 2 * REACH)) for _ in range(2))
        shape = SHAPES[int(rng.random() * len(SHAPES))]
        if all(math.hypot(x - other.x, y - other.y) >= 2 * REACH for other in things):
            things.append(Thing(x, y, shape))
    return things


def answer(things: list[Thing], colour: int, kind: str, subtype: int) -> str:
    """The right answer; of objects that are as near or far as each other, that of the first colour."""
    one = things[colour]
    if kind == "non_relational":
        sides = {1: one.x, 2: one.y}
        return one.shape if subtype == 0 else ("yes" if sides[subtype] < SIDE / 2 else "no")
    if subtype == 2:
        return str(sum(other.shape == one.shape for other in things))
    others = [other for other in things if other is not one]
    apart = [(one.x - other.x) ** 2 + (one.y - other.y) ** 2 for other in others]
    return others[apart.index(min(apart) if subtype == 0 else max(apart))].shape


def encode(colour: int, kind: str, subtype: int) -> Float32[np.ndarray, " 11"]:
    """A question in numbers: which colour (6), which kind (2), which subtype (3)."""
    code = np.zeros(11, dtype=np.float32)
    code[[colour, 6 + tuple(QUESTIONS).index(kind), 8 + subtype]] = 1
    return code


def describe(things: list[Thing]) -> Float32[np.ndarray, "6 10"]:
    """A scene in numbers: of each object x and y from -1 to 1, which colour (6), which shape (2)."""
    rows = np.zeros((len(things), 10), dtype=np.float32)
    for number, thing in enumerate(things):
        rows[number, :2] = 2 * thing.x / SIDE - 1, 2 * thing.y / SIDE - 1
        rows[number, [2 + number, 8 + SHAPES.index(thing.shape)]] = 1
    return rows


def draw(things: list[Thing]) -> bytes:
    """The scene on white, as a PNG."""
    image = Image.new("RGB", (SIDE, SIDE), (255, 255, 255))
    pen = ImageDraw.Draw(image)
    for (x, y, shape), colour in zip(things, COLOURS.values(), strict=True):
        paint = pen.rectangle if shape == "square" else pen.ellipse
        paint((x - REACH, y - REACH, x + REACH, y + REACH), fill=colour)
    with io.BytesIO() as file:
        image.save(file, "PNG")
        return file.getvalue()


def _npy(array: np.ndarray) -> bytes:
    with io.BytesIO() as file:
        np.save(file, array)
        return file.getvalue()


def _counted(samples: Iterator[dict[str, Any]], show: Any) -> Iterator[dict[str, Any]]:
    for done, sample in enumerate(samples, start=1):
        show(done)
        yield sample
