"""What shards hold, from their indices and a look at random samples."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

import numpy as np
import soundfile

from mmlab.data.decode import BrokenMember, read_image_header
from mmlab.data.fields import read_field
from mmlab.data.members import Kind, captions, kind_of
from mmlab.data.samples import RawSample, SampleSet


class Spread(NamedTuple):
    """Percentiles of some numbers."""

    least: float
    p5: float
    median: float
    p95: float
    most: float

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Spread | None:
        """Of numbers; None where there are none."""
        if not numbers:
            return None
        return cls(*(round(float(n), 3) for n in np.percentile(numbers, [0, 5, 50, 95, 100])))


@dataclass(frozen=True)
class Survey:
    """What random samples hold."""

    samples: tuple[RawSample, ...]
    """The first of them, to be shown."""
    looked_at: int
    """How many samples the rest is about."""
    broken: int
    """How many of them could not be read, in whole or in part."""
    modalities: Mapping[str, int]
    """How many samples have each modality."""
    label: str | None
    """The field that holds labels."""
    labels: Mapping[str, int]
    """How many samples have each label, the most frequent first."""
    width: Spread | None
    """Of pictures, in pixels, upright."""
    height: Spread | None
    seconds: Spread | None
    """Of sounds."""
    rates: Mapping[int, int]
    """How many sounds have each sampling rate, in Hz."""
    words: Spread | None
    """Of captions."""


def label_of(members: Mapping[str, bytes], field: str) -> list[str]:
    """The labels of a sample, as text.

    Raises:
        BrokenMember: `invalid UTF-8`, `invalid JSON`.
    """
    values = read_field(members, field)
    return [
        value.strip() if isinstance(value, str) else json.dumps(value, sort_keys=True) for value in values
    ]


def survey(shards: SampleSet, *, looked_at: int, shown: int, seed: int, label: str | None) -> Survey:
    """Look at random samples.

    Args:
        shards: Where they are.
        looked_at: How many to read.
        shown: How many of these to keep.
        seed: Of the choice.
        label: The field that holds labels; None: the member `cls`, or `json.label`, where there is one.

    Raises:
        ValueError: No sample looked at has the label that was asked for.
    """
    counts = shards.counts
    total = int(counts.sum())
    numbers = Random(seed).sample(range(total), min(total, max(looked_at, shown)))
    starts = np.concatenate([[0], np.cumsum(counts)])
    field = label or ("cls" if "cls" in shards.extensions else "json.label")
    look = _Look(field)
    kept: dict[int, RawSample] = {}
    first = set(numbers[:shown])
    for number in sorted(numbers):  # in stored order a shard is opened once
        shard = int(np.searchsorted(starts, number, side="right")) - 1
        try:
            raw = shards.read(shard, number - int(starts[shard]))
        except BrokenMember:
            look.broken += 1
            continue
        look.at(raw)
        if number in first:
            kept[number] = raw
    if label is not None and not look.labels:
        raise ValueError(f"--label {label}: none of the {len(numbers)} samples looked at has such a field")
    return look.summary(tuple(kept[n] for n in numbers[:shown] if n in kept), len(numbers))


class _Look:
    """Adds up what samples hold."""

    def __init__(self, field: str) -> None:
        self.field = field
        self.broken = 0
        self.modalities: Counter[str] = Counter()
        self.labels: Counter[str] = Counter()
        self.rates: Counter[int] = Counter()
        self.widths: list[float] = []
        self.heights: list[float] = []
        self.seconds: list[float] = []
        self.words: list[float] = []

    def at(self, raw: RawSample) -> None:
        """Add a sample."""
        kinds = {kind_of(extension) for extension in raw.members} & {Kind.IMAGE, Kind.SOUND, Kind.SIGNAL}
        read = [self._member(name, data) for name, data in raw.members.items()]
        fine = all(read)
        try:
            texts = captions(raw.members)
            if texts:
                kinds.add(Kind.TEXT)
            self.words += [float(len(text.split())) for text in texts]
            self.labels.update(label_of(raw.members, self.field))
        except BrokenMember:
            fine = False
        self.modalities.update(kind.value for kind in kinds)
        self.broken += not fine

    def _member(self, extension: str, data: bytes) -> bool:
        """Add a picture or a sound, by its header; returns whether that could be read."""
        kind = kind_of(extension)
        try:
            if kind is Kind.IMAGE:
                header = read_image_header(data)
                self.widths.append(float(header.width))
                self.heights.append(float(header.height))
            elif kind is Kind.SOUND:
                about = soundfile.info(io.BytesIO(data))
                self.rates[about.samplerate] += 1
                self.seconds.append(about.frames / max(1, about.samplerate))
        except (BrokenMember, soundfile.SoundFileError, OSError, TypeError):
            return False
        return True

    def summary(self, samples: tuple[RawSample, ...], looked_at: int) -> Survey:
        """All that was added."""
        return Survey(
            samples=samples,
            looked_at=looked_at,
            broken=self.broken,
            modalities=dict(sorted(self.modalities.items())),
            label=self.field if self.labels else None,
            labels=dict(self.labels.most_common()),
            width=Spread.of(self.widths),
            height=Spread.of(self.heights),
            seconds=Spread.of(self.seconds),
            rates=dict(sorted(self.rates.items())),
            words=Spread.of(self.words),
        )
