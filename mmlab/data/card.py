"""A sample as a card of a contact sheet: a small picture, sounds, captions, what else it holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32
from PIL import Image

from mmlab.data.decode import BrokenMember, decode_image, decode_sound, read_image_header
from mmlab.data.members import Kind, captions, kind_of
from mmlab.data.samples import RawSample
from mmlab.data.survey import label_of

SIDE = 320
"""Longer side of a card's picture at most, in pixels."""
_SHOWN = 2
"""Sounds and captions shown of one sample."""
_CHARACTERS = 240
_PEAKS = 72
_RATE = 8_000


class Clip(NamedTuple):
    """A sound."""

    extension: str
    """As in the shard: `fr.ogg`."""
    content: bytes
    seconds: float
    peaks: Float32[np.ndarray, " parts"]
    """Loudest value of each part, in [0, 1] of the loudest of all."""


class Card(NamedTuple):
    """What is shown of a sample."""

    key: str
    picture: Image.Image | None
    clips: tuple[Clip, ...]
    captions: tuple[str, ...]
    labels: tuple[str, ...]
    notes: tuple[str, ...]
    """What else it holds."""
    faults: tuple[str, ...]
    """What of it cannot be read."""


def make_card(raw: RawSample, *, label: str | None) -> Card:
    """Read what is to be shown of a sample.

    Args:
        raw: The sample.
        label: Field that holds labels, or None.
    """
    faults: list[str] = []
    notes: list[str] = []
    picture: Image.Image | None = None
    clips: list[Clip] = []
    more = 0
    for extension, data in raw.members.items():
        kind = kind_of(extension)
        try:
            if kind is Kind.IMAGE and picture is None:
                picture = _picture(data)
            elif kind is Kind.SOUND and len(clips) < _SHOWN:
                clips.append(_clip(extension, data))
            elif kind is Kind.SOUND:
                more += 1
            elif kind not in (Kind.TEXT, Kind.FIELDS, Kind.LABEL):
                notes.append(f"{extension} {_size(len(data))}")
        except BrokenMember as error:
            faults.append(f"{extension}: {error}")
    texts = _texts(raw.members, faults)
    notes += [f"{more} more sounds"] if more > 0 else []
    notes += [f"{len(texts) - _SHOWN} more captions"] if len(texts) > _SHOWN else []
    try:
        labels = [] if label is None else label_of(raw.members, label)
    except BrokenMember as error:
        labels = []
        faults.append(f"label: {error}")
    return Card(
        raw.key, picture, tuple(clips), tuple(map(_cut, texts[:_SHOWN])), tuple(map(_cut, labels[:_SHOWN])),
        tuple(notes), tuple(faults),
    )  # fmt: skip


def _texts(members: Mapping[str, bytes], faults: list[str]) -> list[str]:
    try:
        return captions(members)
    except BrokenMember as error:
        faults.append(f"text: {error}")
        return []


def _picture(data: bytes) -> Image.Image:
    header = read_image_header(data)
    pixels, _ = decode_image(data, header, least=min(1.0, SIDE / max(header.height, header.width)))
    small = Image.fromarray(pixels)
    small.thumbnail((SIDE, SIDE))
    return small


def _clip(extension: str, data: bytes) -> Clip:
    wave = np.abs(decode_sound(data, sampling_rate=_RATE))
    peaks = np.array([part.max(initial=0.0) for part in np.array_split(wave, _PEAKS)], np.float32)
    return Clip(extension, data, len(wave) / _RATE, peaks / max(float(peaks.max()), 1e-6))


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _CHARACTERS else text[: _CHARACTERS - 1] + "…"


def _size(number: int) -> str:
    unit, scale = ("B", 1) if number < 1000 else ("kB", 1000) if number < 10**6 else ("MB", 10**6)
    return f"{number / scale:.3g} {unit}"
