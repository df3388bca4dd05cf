"""The contract between data and models: selecting, masking and moving keep what belongs together."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmlab.batch import NOBODY, Batch, Input, Modality, Skip


@st.composite
def inputs(draw: st.DrawFn, samples: int | None = None) -> Input:
    """Samples with no row, one or several; each row's data tell which row it was."""
    count = draw(st.integers(1, 6)) if samples is None else samples
    owner: list[int] = []
    for sample, rows in enumerate(draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))):
        owner += [sample] * rows if rows > 0 else [NOBODY]
    present = torch.zeros(count, dtype=torch.bool)
    present[[o for o in owner if o != NOBODY]] = True
    lengths = draw(st.none() | st.lists(st.integers(1, 5), min_size=len(owner), max_size=len(owner)))
    return Input(
        data=torch.arange(len(owner) * 5).reshape(len(owner), 5),
        owner=torch.tensor(owner),
        present=present,
        length=None if lengths is None else torch.tensor(lengths),
        target=None if lengths is None else torch.arange(len(owner) * 5).reshape(len(owner), 5) % 3 == 0,
        box=None if lengths is None else torch.arange(len(owner) * 20.0).reshape(len(owner), 5, 4),
    )


def rows_of(value: Input, sample: int) -> list[list[Any] | None]:
    """All that the rows of a sample hold."""
    own = value.owner == sample
    parts = (value.data, value.length, value.target, value.box)
    return [None if part is None else part[own].tolist() for part in parts]


@given(inputs(), st.data())
@settings(max_examples=100, deadline=None)
def test_selected_samples_keep_their_rows(value: Input, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(value.present))))
    chosen = order[: data.draw(st.integers(1, len(order)))]
    selected = value.select(torch.tensor(chosen))
    assert selected.present.tolist() == value.present[chosen].tolist()
    for new, old in enumerate(chosen):
        assert rows_of(selected, new) == rows_of(value, old)
    absent = sum(not value.present[old] for old in chosen)
    assert (selected.owner == NOBODY).sum() == absent
    assert len(selected.data) == (selected.owner != NOBODY).sum() + absent
    owned = selected.owner[selected.owner != NOBODY]
    assert owned.tolist() == sorted(owned.tolist())


@given(inputs())
@settings(max_examples=50, deadline=None)
def test_presence_says_who_owns_a_row(value: Input) -> None:
    everyone = value.select(torch.arange(len(value.present)))
    assert everyone.present.tolist() == [bool((everyone.owner == i).any()) for i in range(len(value.present))]


@given(inputs())
@settings(max_examples=50, deadline=None)
def test_mask_covers_each_length(value: Input) -> None:
    if value.length is None:
        assert value.mask is None
    else:
        assert value.mask is not None
        assert value.mask.shape == value.data.shape[:2]
        assert value.mask.tolist() == [
            [step < length for step in range(5)] for length in value.length.tolist()
        ]


def batch(samples: int, image: Input, text: Input) -> Batch:
    return Batch(
        keys=tuple(f"key{i}" for i in range(samples)),
        place=torch.arange(samples) + 10,
        valid=torch.arange(samples) % 2 == 0,
        group=torch.arange(samples) * 3,
        image=image,
        text=text,
        skips=(Skip("lost", "truncated"),),
    )


def tensors(value: Batch) -> list[Tensor]:
    """Every tensor of a batch, those of its inputs too."""
    parts = [value, *(part for _, part in value.inputs())]
    found = [getattr(part, f.name) for part in parts for f in fields(part)]
    return [tensor for tensor in found if isinstance(tensor, Tensor)]


@given(inputs(samples=4), inputs(samples=4))
@settings(max_examples=25, deadline=None)
def test_a_batch_selects_and_moves_as_a_whole(image: Input, text: Input) -> None:
    whole = batch(4, image, text)
    part = whole.select(torch.tensor([3, 1]))
    assert (len(part), part.keys, part.place.tolist()) == (2, ("key3", "key1"), [13, 11])
    assert (part.group.tolist(), part.valid.tolist()) == ([9, 3], [False, False])
    assert rows_of(part.get(Modality.TEXT), 0) == rows_of(text, 3)
    assert rows_of(part.get(Modality.IMAGE), 1) == rows_of(image, 1)
    assert (part.audio, part.skips) == (None, ())

    moved = whole.to("meta")
    assert {tensor.device.type for tensor in tensors(moved)} == {"meta"}
    assert len(tensors(moved)) == len(tensors(whole))
    assert (moved.keys, moved.skips, moved.signal) == (whole.keys, whole.skips, None)


def test_inputs_are_those_that_the_run_reads() -> None:
    one = Input(torch.zeros(2, 5), torch.tensor([0, 1]), torch.tensor([True, True]))
    assert [modality for modality, _ in batch(2, one, one).inputs()] == [Modality.IMAGE, Modality.TEXT]
    assert all(batch(2, one, one).get(m) is one for m in (Modality.IMAGE, Modality.TEXT))


def test_nothing_in_a_batch_can_be_replaced() -> None:
    one = Input(torch.zeros(1, 5), torch.tensor([0]), torch.tensor([True]))
    with pytest.raises(FrozenInstanceError):
        one.data = torch.ones(1, 5)
    with pytest.raises(FrozenInstanceError):
        batch(1, one, one).keys = ()
