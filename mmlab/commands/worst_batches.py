"""Batches as large as training can meet: samples of the config, with the longest rows that readers allow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from mmlab.batch import Batch, Input, Modality
from mmlab.data.audio import AudioReader
from mmlab.data.buckets import measure_lengths
from mmlab.data.module import ShardData
from mmlab.data.order import EvaluationOrder
from mmlab.data.reader import Reader
from mmlab.data.signal import SignalReader
from mmlab.data.stream import Stream
from mmlab.data.text import TextReader

_READ = 64
"""Different samples; more are repeated."""


class Bucket(NamedTuple):
    """Training batches of one kind."""

    length: int | None
    """Steps of their longest row, in whatever modality; None where no row has a length."""
    batch: Batch
    """One rank's share of the largest."""


def worst_batches(data: ShardData, *, ranks: int) -> list[Bucket]:
    """The largest batch of each length bucket, or of all training, the longest bucket first.

    Args:
        data: Not set up.
        ranks: Processes that share each batch.

    Raises:
        ValueError: As `ShardData.setup`.
    """
    data.prepare_data()
    data.setup("fit")
    stream = data.train_dataloader().stream
    count = min(_READ, data.batch_size, int(stream.shards.counts.sum()))
    order = EvaluationOrder(stream.shards.counts, batch_size=count)
    few = Stream(
        stream.shards, order, stream.readers, seed=data.loading.seed, group_by=data.loading.group_by
    ).batch(0)
    longest = {reader.modality: longest_row(reader) for reader in data.readers}
    found = []
    for size, lengths in _kinds(data, longest):
        whole = _stretched(few, lengths).select(torch.arange(max(1, size // ranks)) % count)
        steps = [inputs.data.shape[1] for _, inputs in whole.inputs() if inputs.length is not None]
        found.append(Bucket(max(steps, default=None), whole))
    return found


def longest_row(reader: Reader) -> int | None:
    """The most steps that a reader lets a row have; None where it has no bound, or rows have one size."""
    if isinstance(reader, TextReader):
        return reader.max_length
    if isinstance(reader, AudioReader) and reader.max_seconds is not None:
        return round(reader.max_seconds * reader.sampling_rate)
    return reader.max_steps if isinstance(reader, SignalReader) else None


def _kinds(
    data: ShardData, longest: Mapping[Modality, int | None]
) -> list[tuple[int, Mapping[Modality, int | None]]]:
    """Global batch size and longest rows of each kind of batch."""
    bucketing = data.loading.bucketing
    if bucketing is None:
        return [(data.batch_size, longest)]
    reader = next(reader for reader in data.readers if reader.modality == bucketing.by)
    samples, _ = data.plan("train")
    bounds = [int(bound) for bound in bucketing.bounds(measure_lengths(samples, reader))]
    return [
        (
            bucketing.batch_size(bound, reader=reader, most=data.batch_size),
            {**longest, reader.modality: bound},
        )
        for bound in reversed(bounds)
    ]


def _stretched(batch: Batch, longest: Mapping[Modality, int | None]) -> Batch:
    rows = {}
    for modality, inputs in batch.inputs():
        steps = longest.get(modality)
        if steps is not None and inputs.length is not None and not inputs.encoded:
            inputs = _stretch(inputs, steps)
        rows[modality.value] = inputs
    return replace(batch, **rows)  # type: ignore[arg-type]


def _stretch(inputs: Input, steps: int) -> Input:
    """Rows of so many valid steps, repeated or cut."""
    repeats = [1, -(-steps // inputs.data.shape[1]), *[1] * (inputs.data.ndim - 2)]
    data: Tensor = inputs.data.repeat(repeats)[:, :steps]
    return replace(inputs, data=data, length=torch.full_like(inputs.owner, steps))
