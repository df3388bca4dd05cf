"""Coloured shapes as picture, caption, sound and movement: data for first tries, without a network."""

from __future__ import annotations

import io
import json
import math
import wave
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32
from PIL import Image, ImageDraw

from mmlab.data.shards import write_shards
from mmlab.data.source import Source
from mmlab.sources.prepared import Prepared

_FORMAT = 1
"""Raised when what is written changes."""
_CORNERS = {"triangle": 3, "square": 4, "pentagon": 5, "star": 10, "circle": 48}
_COLOURS = {
    "red": (220, 40, 40), "green": (40, 160, 60), "blue": (50, 80, 220), "yellow": (235, 205, 40),
    "purple": (150, 60, 190), "orange": (240, 140, 30),
}  # fmt: skip
_RADII = {"small": 0.18, "large": 0.36}
"""In sides of the picture."""
_BACKGROUNDS = ((250, 250, 250), (200, 205, 210), (90, 95, 100), (15, 15, 20))
_SIDE = 64
_RATE = 16_000
_SECONDS = 0.6
_STEPS = 48


class Thing(NamedTuple):
    """What a sample shows, says, sounds and moves like."""

    size: str
    colour: str
    shape: str

    @property
    def caption(self) -> str:
        """In English."""
        return f"a {self.size} {self.colour} {self.shape}"


THINGS = tuple(Thing(*parts) for parts in product(_RADII, _COLOURS, _CORNERS))
"""All 60."""


class Generated(Source):
    """A small generated data set of four modalities.

    Which of 60 things (2 sizes, 6 colours, 5 shapes) a sample is, is to be told from its picture (`jpg`, 64 x
    64), its caption (`json.caption`), its sound (`wav`, 16 kHz, 0.6 s: pitch for the colour, number of tones
    for the shape, loudness for the size) and its movement (`npy`, 48 steps of x, y and speed: path for the
    shape, extent for the size, speed for the colour). Place, background, phase and noise differ between
    samples. Samples of equal captions share `json.group`.
    """

    name = "generated"

    def __init__(
        self,
        *,
        train: int = 600,
        val: int = 120,
        test: int = 120,
        missing: Mapping[str, float] | None = None,
        seed: int = 0,
        out: Path | None = None,
    ) -> None:
        """Settings.

        Args:
            train: Number of samples.
            val: Number of samples.
            test: Number of samples.
            missing: Share of samples that lack a modality, for `image`, `audio` or `signal`; none by default.
            seed: Other seeds, other samples of the same 60 things.
            out: Folder to write; None: one in the cache directory.

        Raises:
            ValueError: A split is empty, or `missing` names something else.
        """
        self.counts = {"train": train, "val": val, "test": test}
        self.missing = dict(missing or {})
        self.seed = seed
        for split, number in self.counts.items():
            if number < 1:
                raise ValueError(f"{split} is {number}: every split needs at least one sample.")
        for modality, share in self.missing.items():
            if modality not in ("image", "audio", "signal") or not 0 <= share <= 1:
                raise ValueError(
                    f"missing has {modality}: {share}; it takes shares from 0 to 1 of image, audio, signal."
                )
        settings = {"counts": self.counts, "missing": self.missing, "seed": seed, "format": _FORMAT}
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
        for split in self.counts:
            write_shards(self.samples(split), folder, split)
        return {"splits": {split: {"samples": number} for split, number in self.counts.items()}}

    def samples(self, split: str) -> Iterator[dict[str, Any]]:
        """The samples of a split, as they are written: key and bytes by extension."""
        number = self.counts[split]
        order = Random(f"{self.seed}/{split}").sample(range(number), number)
        for place, turn in enumerate(order):
            rng = Random(f"{self.seed}/{split}/{place}")
            thing = THINGS[turn % len(THINGS)]
            about = thing._asdict() | {"caption": thing.caption, "group": thing.caption}
            members = {
                "image": ("jpg", _draw(thing, rng)),
                "audio": ("wav", _sound(thing, rng)),
                "signal": ("npy", _move(thing, rng)),
            }
            sample: dict[str, Any] = {"__key__": f"{split}-{place:06d}", "json": json.dumps(about).encode()}
            for modality, (extension, content) in members.items():
                if rng.random() >= self.missing.get(modality, 0.0):
                    sample[extension] = content
            yield sample


def _draw(thing: Thing, rng: Random) -> bytes:
    """The shape at a random place, somewhat turned and tinted, as a JPEG."""
    corners, radius = _CORNERS[thing.shape], _RADII[thing.size] * rng.uniform(0.85, 1.1)
    x, y = (rng.uniform(radius, 1 - radius) for _ in range(2))
    turn = rng.uniform(-0.3, 0.3) + (math.pi / 4 if thing.shape == "square" else -math.pi / 2)
    points = []
    for corner in range(corners):
        reach = radius * (0.45 if thing.shape == "star" and corner % 2 else 1.0)
        angle = turn + 2 * math.pi * corner / corners
        points.append(((x + reach * math.cos(angle)) * _SIDE * 2, (y + reach * math.sin(angle)) * _SIDE * 2))
    tint = tuple(min(255, max(0, value + int(rng.uniform(-15, 15)))) for value in _COLOURS[thing.colour])
    # Drawn at twice the size, so that edges are smooth after halving.
    image = Image.new("RGB", (_SIDE * 2, _SIDE * 2), _BACKGROUNDS[int(rng.random() * len(_BACKGROUNDS))])
    ImageDraw.Draw(image).polygon(points, fill=tint)
    with io.BytesIO() as file:
        image.resize((_SIDE, _SIDE), Image.Resampling.BOX).save(file, "JPEG", quality=90)
        return file.getvalue()


def _sound(thing: Thing, rng: Random) -> bytes:
    """As many tones as the shape's place in the list of shapes, as a WAV file of 16 bits."""
    tones = 1 + list(_CORNERS).index(thing.shape)
    pitch = 220 * 2 ** ((list(_COLOURS).index(thing.colour) * 4 + rng.uniform(-0.5, 0.5)) / 12)
    loudness = {"small": 0.15, "large": 0.6}[thing.size] * rng.uniform(0.8, 1.2)
    time = np.arange(int(_RATE * _SECONDS)) / _RATE
    swell = np.clip(np.sin(2 * math.pi * tones / _SECONDS * time), 0, None)
    tone = loudness * swell * np.sin(2 * math.pi * (pitch * time + rng.random()))
    values = ((tone + _noise(len(time), rng) * 0.01).clip(-1, 1) * 32767).astype("<i2")
    with io.BytesIO() as file:
        with wave.open(file, "wb") as sound:
            sound.setnchannels(1)
            sound.setsampwidth(2)
            sound.setframerate(_RATE)
            sound.writeframes(values.tobytes())
        return file.getvalue()


def _move(thing: Thing, rng: Random) -> bytes:
    """A point that goes round, its radius waving as often as the shape's place in the list of shapes."""
    waves = list(_CORNERS).index(thing.shape)
    speed = (1 + list(_COLOURS).index(thing.colour)) / len(_COLOURS)
    angle = 2 * math.pi * (np.linspace(0, 1, _STEPS) + rng.random())
    radius = 2 * _RADII[thing.size] * (1 + 0.4 * np.sin(waves * angle))
    path = np.stack([radius * np.cos(angle), radius * np.sin(angle), np.full(_STEPS, speed)], axis=1)
    path = path + _noise(path.size, rng).reshape(path.shape) * 0.03
    with io.BytesIO() as file:
        np.save(file, path.astype(np.float32))
        return file.getvalue()


def _noise(number: int, rng: Random) -> Float32[np.ndarray, " number"]:
    """Evenly between -1 and 1, the same with every release of numpy."""
    return np.frombuffer(rng.randbytes(number), np.uint8).astype(np.float32) / 127.5 - 1
