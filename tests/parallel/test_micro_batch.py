"""Running in parts: the rows of the parts, gradients of the whole, dropout replayed, memory of one part."""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mmlab.batch import NOBODY, Batch, Input
from mmlab.models.dual_encoder import DualEncoder, Tower
from mmlab.models.encoders.signal import SignalEncoder
from mmlab.objectives.contrastive import InfoNCE
from mmlab.parallel.micro_batch import part_size, run_in_parts, split
from mmlab.parallel.recompute import recomputing


def make_input(rows: list[int], width: int = 3) -> Input:
    """Rows of samples as collate puts them: a sample without any has one that nobody owns."""
    owner = [number if count else NOBODY for number, count in enumerate(rows) for _ in range(max(count, 1))]
    generator = torch.Generator().manual_seed(len(owner))
    return Input(
        torch.randn(len(owner), 4, width, generator=generator),
        owner=torch.tensor(owner),
        present=torch.tensor([count > 0 for count in rows]),
        length=torch.randint(1, 5, (len(owner),), generator=generator),
    )


def make_batch(signal: list[int], audio: list[int] | None = None) -> Batch:
    samples = len(signal)
    return Batch(
        keys=tuple(map(str, range(samples))),
        place=torch.arange(samples),
        valid=torch.ones(samples, dtype=torch.bool),
        group=torch.arange(samples),
        signal=make_input(signal),
        audio=None if audio is None else make_input(audio, 2),
        source=torch.arange(samples) % 2,
        sources=("a", "b"),
    )


counts = st.lists(st.integers(0, 3), min_size=1, max_size=9)


@settings(deadline=None, max_examples=60)
@given(counts, st.integers(1, 10))
def test_parts_are_what_select_gives_and_hold_every_row(rows: list[int], size: int) -> None:
    batch = make_batch(rows, rows[::-1])
    parts = list(split(batch, size))
    assert [len(part) for part in parts[:-1]] == [size] * (len(parts) - 1)
    for number, part in enumerate(parts):
        chosen = torch.arange(len(batch))[number * size : (number + 1) * size]
        expected = batch.select(chosen)
        assert part.keys == expected.keys
        for name in ("place", "valid", "group", "source"):
            assert torch.equal(getattr(part, name), getattr(expected, name))
        for (_, found), (_, wanted) in zip(part.inputs(), expected.inputs(), strict=True):
            assert torch.equal(found.owner, wanted.owner)
            assert torch.equal(found.present, wanted.present)
            owned = wanted.owner != NOBODY  # select gives each its own blank row, or another one
            assert torch.equal(found.data[owned], wanted.data[owned])
            assert torch.equal(found.length[owned], wanted.length[owned])
    for modality, whole in batch.inputs():
        assert torch.equal(torch.cat([part.get(modality).data for part in parts]), whole.data)


class Output(NamedTuple):
    vector: Tensor
    rest: tuple[Tensor, None]


class Network(nn.Module):
    """Float64 throughout, unlike the towers; remembers how many rows of activations are alive."""

    def __init__(self, dropout: float = 0.0, *, norm: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(12, 16)
        self.norm = nn.BatchNorm1d(16) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Linear(16, 5)
        self.double()
        self.alive = self.most = self.calls = self.again = 0

    def forward(self, batch: Batch) -> Output:
        assert batch.signal is not None
        self.calls += 1
        self.again += recomputing()
        hidden = self.norm(self.first(batch.signal.data.double().flatten(1)))
        self.alive += len(hidden)
        self.most = max(self.most, self.alive)
        weakref.finalize(hidden, self.free, len(hidden))
        vector = self.last(self.dropout(hidden.sin()))
        return Output(nn.functional.normalize(vector, dim=1), (batch.signal.owner, None))

    def free(self, rows: int) -> None:
        self.alive -= rows


def loss_of(output: Output) -> Tensor:
    """Mixes all rows of the batch."""
    logits = 5 * output.vector @ output.vector.T
    return nn.functional.cross_entropy(logits, torch.arange(len(logits)).flip(0)) + output.vector.sum() ** 2


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 20])
def test_gradients_are_those_of_the_whole_batch(size: int) -> None:
    batch, model = make_batch([1, 2, 0, 1, 3, 0, 1, 1]), Network()
    whole = model(batch)
    expected = gradients(model, loss_of(whole))
    model.calls = 0
    output = run_in_parts(model, batch, size)
    torch.testing.assert_close(output.vector, whole.vector, rtol=0, atol=1e-14)
    found = gradients(model, loss_of(output))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-10)
    parts = -(-8 // size)
    assert (model.calls, model.again) == ((2 * parts, parts) if parts > 1 else (1, 0))


def test_dropout_is_replayed_exactly() -> None:
    batch, model = make_batch([1] * 7), Network(dropout=0.4)
    torch.manual_seed(3)
    parts = [model(part).vector for part in split(batch, 3)]
    expected = gradients(model, loss_of(Output(torch.cat(parts), (torch.tensor(0), None))))
    after = torch.rand(3)
    torch.manual_seed(3)
    found = gradients(model, loss_of(run_in_parts(model, batch, 3)))
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert torch.equal(torch.rand(3), after), "the second pass has moved the generator"


def test_activations_of_one_part_are_held_at_a_time() -> None:
    batch, model = make_batch([1] * 12), Network()
    gradients(model, loss_of(model(batch)))
    assert (model.most, model.alive) == (12, 0)
    model.most = 0
    gradients(model, loss_of(run_in_parts(model, batch, 3)))
    assert (model.most, model.alive) == (3, 0)


def test_running_statistics_move_once_for_each_part() -> None:
    batch, plain, model = make_batch([1] * 8), Network(norm=True), Network(norm=True)
    parts = [plain(part).vector for part in split(batch, 4)]
    expected = gradients(plain, loss_of(Output(torch.cat(parts), (torch.tensor(0), None))))
    found = gradients(model, loss_of(run_in_parts(model, batch, 4)))
    for name, value in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_towers_learn_what_they_learn_from_the_whole_batch() -> None:
    torch.manual_seed(0)
    batch = make_batch([1, 0, 2, 1, 1, 0, 1, 1])
    other = make_input([1, 1, 1, 0, 2, 1, 0, 1])
    model = DualEncoder(signal=Tower(SignalEncoder(3, dim=16), dim=8))
    objective = InfoNCE()

    def loss(output: Any) -> Tensor:
        signal = output.signal
        fixed = nn.functional.normalize(other.data[: len(signal.vector)].flatten(1)[:, :8], dim=1)
        return objective(signal, signal._replace(vector=fixed[: len(signal.vector)])).value

    expected = gradients(model, loss(model(batch)))
    found = gradients(model, loss(run_in_parts(model, batch, 3)))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


def test_the_size_may_go_by_the_longest_row() -> None:
    batch = make_batch([1] * 5)  # rows of 4 steps
    assert part_size(batch, 7) == 7
    assert part_size(batch, {8: 2, 4: 3, 2: 9}) == 3
    assert part_size(batch, {3: 4, 2: 9}) == 4, "beyond the greatest length, that one's"


def test_outputs_that_are_not_rows_are_refused() -> None:
    class Sum(Network):
        def forward(self, batch: Batch) -> Any:
            return super().forward(batch).vector.sum()

    with pytest.raises(ValueError, match="micro_batch: the model gives a number"):
        run_in_parts(Sum(), make_batch([1] * 4), 2)
