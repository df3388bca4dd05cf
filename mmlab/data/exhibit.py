"""What a person sees, reads and hears of a sample: for pages that show results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mmlab.data.audio import AudioReader
from mmlab.data.image import ImageReader
from mmlab.data.prompt import PromptReader
from mmlab.data.reader import Reader
from mmlab.data.samples import RawSample
from mmlab.data.text import TextReader


class Sound(NamedTuple):
    """A sound file."""

    extension: str
    """As in the shard: `fr.ogg`."""
    content: bytes


class Exhibit(NamedTuple):
    """The media of one sample; the rows that an evaluation reads, in their order."""

    key: str
    images: tuple[bytes, ...]
    texts: tuple[str, ...]
    sounds: tuple[Sound, ...]


def exhibit(raw: RawSample, readers: Sequence[Reader]) -> Exhibit:
    """Pick what the readers would read of a sample in evaluation."""
    images: list[bytes] = []
    texts: list[str] = []
    sounds: list[Sound] = []
    for reader in readers:
        if isinstance(reader, ImageReader):
            images += [raw.members[name] for name in reader.matching(raw.members)]
        elif isinstance(reader, PromptReader):
            texts += reader.questions(raw.members)
        elif isinstance(reader, TextReader):
            texts += reader.captions(raw.members)
        elif isinstance(reader, AudioReader):
            sounds += [Sound(name, raw.members[name]) for name in reader.matching(raw.members)]
    return Exhibit(raw.key, tuple(images), tuple(texts), tuple(sounds))
