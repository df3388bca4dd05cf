"""Running a model over parts of a batch, for losses that need the whole batch's outputs at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmlab import collectives
from mmlab.batch import NOBODY, Batch, Input
from mmlab.parallel.recompute import recompute_later

Sizes = int | dict[int, int]
"""Samples of a part; or that by length."""


def run_in_parts(model: nn.Module, batch: Batch, size: Sizes) -> Any:
    """Run a model over parts of a batch and hold the activations of one part at a time.

    What the parts give stands side by side as if the batch had run whole; only the outputs are held, and the
    backward pass runs each part again. That is gradient caching (Gao et al. 2021, arXiv:2101.06983): the
    gradient of any loss of all outputs, for one more forward pass. Dropout is replayed. What looks at the
    whole batch inside the model (batch normalisation in training) sees parts, and updates its running
    statistics once for each.

    Gradients are reduced over ranks once. FSDP gathers the weights anew for each part, and holds the
    gradients whole until then, as in accumulation without synchronisation.

    Args:
        model: Gives a tensor, None, or a tuple of these (named or not, nested), each with a row for each row
            of the batch.
        batch: As it is collated, the rows in the order of the samples.
        size: See :attr:`mmlab.parallel.execution.Execution.micro_batch`.

    Raises:
        ValueError: The model gives something else.
    """
    samples = part_size(batch, size)
    if len(batch) <= samples:
        return model(batch)
    outputs = []
    for part in split(batch, samples):
        example = next(inputs.data for _, inputs in part.inputs())
        outputs.append(recompute_later(partial(model, part), model, example))
    return _side_by_side(outputs)


def part_size(batch: Batch, size: Sizes) -> int:
    """Samples of a part, the same on every rank: FSDP runs as many forward passes on each.

    A mapping is asked for the longest row of any rank; beyond its greatest length, that one's samples hold.
    Every rank must call this.
    """
    if isinstance(size, int):
        return size
    longest = max((i.data.shape[1] for _, i in batch.inputs() if i.length is not None), default=0)
    group = collectives.cpu_group()
    if group is not None:
        agreed = torch.tensor(longest)
        dist.all_reduce(agreed, dist.ReduceOp.MAX, group=group)
        longest = int(agreed)
    return size[min((length for length in size if length >= longest), default=max(size))]


def split(batch: Batch, samples: int) -> Iterator[Batch]:
    """Cut a batch into parts of so many samples, the last of what is left; nothing is copied."""
    starts = range(0, len(batch), samples)
    inputs: dict[str, list[Input]] = {
        modality.value: list(_split(whole, starts, len(batch))) for modality, whole in batch.inputs()
    }
    for number, start in enumerate(starts):
        rows: dict[str, Any] = {modality: parts[number] for modality, parts in inputs.items()}
        chosen = slice(start, start + samples)
        yield replace(
            batch,
            keys=batch.keys[chosen],
            place=batch.place[chosen],
            valid=batch.valid[chosen],
            group=batch.group[chosen],
            skips=(),
            source=None if batch.source is None else batch.source[chosen],
            references=batch.references[chosen],
            kinds=batch.kinds[chosen],
            notes=batch.notes[chosen],
            **rows,
        )


def _split(whole: Input, starts: range, samples: int) -> Iterator[Input]:
    """The rows of each part, with the numbers that its samples have in it."""
    bounds = _first_rows(whole, starts, samples)
    for number, start in enumerate(starts):
        chosen = slice(bounds[number], bounds[number + 1])
        owner = whole.owner[chosen]
        yield replace(
            whole,
            data=whole.data[chosen],
            owner=torch.where(owner == NOBODY, owner, owner - start),
            present=whole.present[start : start + starts.step],
            length=None if whole.length is None else whole.length[chosen],
            target=None if whole.target is None else whole.target[chosen],
            box=None if whole.box is None else whole.box[chosen],
            masked=None if whole.masked is None else whole.masked[chosen],
        )


def _first_rows(whole: Input, starts: range, samples: int) -> list[int]:
    """The row that each part begins with, and the number of all rows."""
    rows = len(whole.owner)
    if rows == samples:  # one for each sample; elsewhere a GPU has to be asked
        return [*starts, samples]
    later = (whole.owner[1:] != whole.owner[:-1]) | (whole.owner[1:] == NOBODY)
    first = [0, *(later.nonzero().flatten() + 1).tolist()]
    assert len(first) == samples, f"{samples} samples, but rows of {len(first)} or of nobody"
    return [*(first[start] for start in starts), rows]


def _side_by_side(outputs: Sequence[Any]) -> Any:
    """The outputs of all parts as one."""
    first = outputs[0]
    if first is None:
        return None
    if isinstance(first, Tensor) and first.ndim > 0:
        return torch.cat(list(outputs))
    if isinstance(first, tuple):
        fields = [_side_by_side(values) for values in zip(*outputs, strict=True)]
        return type(first)(*fields) if hasattr(first, "_fields") else tuple(fields)
    found = "a number" if isinstance(first, Tensor) else type(first).__name__
    raise ValueError(
        f"micro_batch: the model gives {found}, which cannot be put together from parts: leave it out, or "
        "let the model give tensors with a row for each row of the batch, None, or tuples of these"
    )
