"""Sounds -> float32 waveforms of one channel and one sampling rate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from random import Random

import torch
from jaxtyping import Float32
from torch import Tensor

from mmlab.batch import Modality
from mmlab.data.decode import decode_sound, sound_seconds
from mmlab.data.pattern import matching
from mmlab.data.reader import Reader, Rows, pad, pick


class AudioReader(Reader):
    """Sounds as float32 [steps] in [-1, 1]; the encoder computes what it needs of them on the device."""

    modality = Modality.AUDIO
    settings_of_use = frozenset({"every"})

    def __init__(
        self,
        sampling_rate: int = 16_000,
        *,
        members: Sequence[str] = ("wav", "flac", "ogg", "mp3"),
        max_seconds: float | None = 10.0,
        every: bool = False,
    ) -> None:
        """Settings.

        Args:
            sampling_rate: In Hz, of the result.
            members: Extensions that hold sounds, in order of preference; `*` and `?` match as in file names
                (`*.ogg` matches `en.ogg` and `fr.ogg`). Of several that a sample has, training draws one and
                evaluation takes the first.
            max_seconds: Longer sounds are cut: in training to a random part, in evaluation to the beginning.
            every: In evaluation, return all sounds of a sample, as several rows.
        """
        self.sampling_rate = sampling_rate
        self.steps_per_unit = sampling_rate
        self.members = tuple(members)
        self.max_seconds = max_seconds
        self.every = every

    def matching(self, members: Mapping[str, bytes]) -> list[str]:
        """The extensions of a sample that hold sounds, best first."""
        return matching(members, self.members)

    def describe(self) -> str:
        """The extensions that it reads."""
        return ", ".join(self.members)

    def finds(self, members: Mapping[str, bytes]) -> bool:
        """Whether the sample has a sound."""
        return len(self.matching(members)) > 0

    def count(self, members: Mapping[str, bytes], *, training: bool) -> int:
        """Sounds that are read: one, or all in evaluation with `every`."""
        found = len(self.matching(members))
        return found if self.every and not training else min(found, 1)

    def read(self, members: Mapping[str, bytes], rng: Random | None) -> tuple[Tensor, ...]:
        """One sound, or all, or none."""
        found = self.matching(members)
        if rng is not None and found:
            found = [found[pick(len(found), rng)]]
        elif not self.every:
            found = found[:1]
        position = 0.0 if rng is None else rng.random()
        return tuple(self.decode(members[name], position) for name in found)

    def steps(self, members: Mapping[str, bytes]) -> int:
        """Steps of the longest sound, as its header tells."""
        seconds = max((sound_seconds(members[name]) for name in self.matching(members)), default=0.0)
        if self.max_seconds is not None:
            seconds = min(seconds, self.max_seconds)
        return math.ceil(seconds * self.sampling_rate)

    def decode(self, data: bytes, position: float = 0.0) -> Float32[Tensor, " steps"]:
        """Decode one sound; a longer one is cut at `position`, from 0 (beginning) to 1 (end)."""
        wave = decode_sound(
            data, sampling_rate=self.sampling_rate, max_seconds=self.max_seconds, position=position
        )
        return torch.from_numpy(wave)

    def blank(self) -> Float32[Tensor, " steps"]:
        """A tenth of a second of silence."""
        return torch.zeros(self.sampling_rate // 10)

    def stack(self, rows: Sequence[Tensor]) -> Rows:
        """Pad with silence."""
        return pad(rows)
