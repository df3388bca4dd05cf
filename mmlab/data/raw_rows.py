"""Raw rows of samples in stored order, gathered for encoders that run once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmlab.batch import Input, Modality
from mmlab.data.decode import BrokenMember
from mmlab.data.randomness import draw_seed
from mmlab.data.reader import Reader
from mmlab.data.samples import SampleSet
from mmlab.data.tokens import Row, every_row

TO_ENCODE = 0
"""Stands for the tokens of a row that no encoder has seen yet."""


class Part(NamedTuple):
    """Samples of one shard that follow each other."""

    shard: int
    start: int
    stop: int


class RawPart(NamedTuple):
    """What encoders are to make of a part."""

    keys: tuple[str, ...]
    variants: tuple[dict[Modality, list[list[Row]]], ...]
    """For each sample and each modality that it has: variants and their rows, :data:`TO_ENCODE` or the reason
    why one cannot be read."""
    inputs: dict[Modality, tuple[Input, ...]]
    """The rows to encode, sample by sample, variant by variant, in pieces."""


def parts(shard: int, samples: int, size: int) -> Iterator[Part]:
    """Cut a shard into parts of at most `size` samples."""
    return (Part(shard, start, min(start + size, samples)) for start in range(0, samples, size))


class RawRows(Dataset[RawPart]):
    """The parts of a sample set; every row that a reader may choose from, in each variant."""

    def __init__(
        self, samples: SampleSet, readers: Sequence[Reader], *, rows: int, variants: int = 0, seed: int = 0
    ) -> None:
        """Settings.

        Args:
            samples: What to read.
            readers: Of the modalities to encode.
            rows: To encode at once, at most.
            variants: Augmented variants of each sample; 0: one, as evaluation reads it. Variants that are all
                alike (a text, a sound that is not cut) are one.
            seed: Of the augmentation.
        """
        self.samples = samples
        self.readers = tuple(readers)
        self.rows = rows
        self.variants = variants
        self.seed = seed
        self._starts = np.concatenate([[0], np.cumsum(samples.counts)])

    def __getitem__(self, part: Part) -> RawPart:
        """Read and decode a part."""
        keys: list[str] = []
        found: list[dict[Modality, list[list[Row]]]] = []
        rows: dict[Modality, list[Tensor]] = {reader.modality: [] for reader in self.readers}
        for sample in range(part.start, part.stop):
            keys.append(self.samples.key(part.shard, sample))
            found.append({})
            for modality, variants in self._read(part.shard, sample).items():
                found[-1][modality] = [[r if isinstance(r, str) else TO_ENCODE for r in v] for v in variants]
                rows[modality] += [row for v in variants for row in v if not isinstance(row, str)]
        inputs = {reader.modality: self._stack(reader, rows[reader.modality]) for reader in self.readers}
        return RawPart(tuple(keys), tuple(found), inputs)

    def _read(self, shard: int, sample: int) -> dict[Modality, list[list[Tensor | str]]]:
        """The variants of each modality that a sample has."""
        try:
            members = self.samples.read(shard, sample).members
        except BrokenMember as error:
            return {reader.modality: [[str(error)]] for reader in self.readers}
        number, total = int(self._starts[shard]) + sample, int(self._starts[-1])
        draws: list[Random | None] = [None]
        if self.variants > 0:
            draws = [Random(draw_seed(self.seed, v * total + number)) for v in range(self.variants)]
        found = {}
        for reader in self.readers:
            variants = [every_row(reader, members, rng) for rng in draws]
            if variants[0]:
                found[reader.modality] = variants[:1] if _alike(variants) else variants
        return found

    def _stack(self, reader: Reader, rows: Sequence[Tensor]) -> tuple[Input, ...]:
        pieces = (rows[start : start + self.rows] for start in range(0, len(rows), self.rows))
        return tuple(_input(reader, piece) for piece in pieces)


def _input(reader: Reader, rows: Sequence[Tensor]) -> Input:
    data, length = reader.stack(rows)[:2]
    owner = torch.arange(len(rows))
    return Input(data, owner=owner, present=torch.ones(len(rows), dtype=torch.bool), length=length)


def _alike(variants: Sequence[Sequence[Tensor | str]]) -> bool:
    """Whether all variants have the same rows."""
    return all(
        len(variant) == len(variants[0]) and all(map(_same, variant, variants[0])) for variant in variants[1:]
    )


def _same(left: Tensor | str, right: Tensor | str) -> bool:
    if isinstance(left, str) or isinstance(right, str):
        return isinstance(left, str) and isinstance(right, str) and left == right
    return torch.equal(left, right)
