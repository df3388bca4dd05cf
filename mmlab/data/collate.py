"""Samples -> one batch: rows side by side, who owns which, who lacks what."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmlab.batch import NOBODY, Batch, Input, Modality, Skip
from mmlab.data.reader import Reader


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample, read."""

    key: str
    """As in its shard; empty for padding."""
    place: int
    """See :attr:`mmlab.batch.Batch.place`."""
    group: int
    """Samples of one group are positives of each other."""
    valid: bool = True
    """False for padding and for what could not be read."""
    rows: Mapping[Modality, tuple[Tensor, ...]] = field(default_factory=dict)
    """The rows of each modality that it has."""
    skip: Skip | None = None
    """Why it could not be read."""
    source: int = 0
    """Number of its source."""
    references: tuple[str, ...] = ()
    """See :attr:`mmlab.batch.Batch.references`."""
    kind: str = ""
    """See :attr:`mmlab.batch.Batch.kinds`."""
    note: str = ""
    """See :attr:`mmlab.batch.Batch.notes`."""


def collate(
    samples: Sequence[Sample],
    readers: Iterable[Reader],
    *,
    sources: Sequence[str] = (),
    references: bool = False,
    kinds: bool = False,
    notes: bool = False,
) -> Batch:
    """Put samples into one batch, with an input for every reader.

    A sample without rows of a modality gets one blank row that nobody owns, in its place: where no sample
    has several rows, row i belongs to sample i or to nobody.

    Args:
        samples: In the order of their places.
        readers: One for each modality.
        sources: Names of the run's sources, where it has several.
        references: Whether the run reads references, if only of other samples.
        kinds: Whether it reads kinds.
        notes: Whether it reads notes.
    """
    inputs = {reader.modality: _collate(samples, reader) for reader in readers}
    return Batch(
        keys=tuple(sample.key for sample in samples),
        place=torch.tensor([sample.place for sample in samples], dtype=torch.int64),
        valid=torch.tensor([sample.valid for sample in samples], dtype=torch.bool),
        group=torch.tensor([s.group if s.valid else NOBODY for s in samples], dtype=torch.int64),
        skips=tuple(sample.skip for sample in samples if sample.skip is not None),
        source=torch.tensor([s.source for s in samples], dtype=torch.int64) if sources else None,
        sources=tuple(sources),
        references=tuple(sample.references for sample in samples) if references else (),
        kinds=tuple(sample.kind for sample in samples) if kinds else (),
        notes=tuple(sample.note for sample in samples) if notes else (),
        image=inputs.get(Modality.IMAGE),
        text=inputs.get(Modality.TEXT),
        audio=inputs.get(Modality.AUDIO),
        signal=inputs.get(Modality.SIGNAL),
    )


def _collate(samples: Sequence[Sample], reader: Reader) -> Input:
    rows: list[Tensor] = []
    owner: list[int] = []
    present: list[bool] = []
    for number, sample in enumerate(samples):
        own = sample.rows.get(reader.modality, ()) if sample.valid else ()
        rows += own or (reader.blank(),)
        owner += [number] * len(own) or [NOBODY]
        present.append(len(own) > 0)
    stacked = reader.stack(rows)
    return Input(
        data=stacked.data,
        owner=torch.tensor(owner, dtype=torch.int64),
        present=torch.tensor(present, dtype=torch.bool),
        length=stacked.length,
        encoded=reader.encoded,
        target=stacked.target,
        box=stacked.box,
    )
