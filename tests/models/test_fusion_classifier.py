"""Towers, fusion and head as one model: what it gives, that every tower runs once, what does not fit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from mmlab.batch import NOBODY, Batch, Input, Modality
from mmlab.models.encoders.encoder import Encoded, Encoder
from mmlab.models.encoders.signal import SignalEncoder
from mmlab.models.fusion.concatenation import ConcatenationFusion
from mmlab.models.fusion.product import ProductFusion
from mmlab.models.fusion.tower import FusionTower
from mmlab.models.fusion_classifier import FusionClassifier
from mmlab.models.heads import ClassificationHead
from mmlab.parallel.micro_batch import run_in_parts

KINDS = [ProductFusion, ConcatenationFusion]


class Words(Encoder):
    """A table of words that counts how often it is asked."""

    modality = Modality.TEXT
    dim = 8

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, self.dim)
        self.calls = 0

    def encode(self, inputs: Input) -> Encoded:
        self.calls += 1
        assert inputs.mask is not None
        return Encoded(self.table(inputs.data), inputs.mask)


def make_batch(rank: int = 0) -> Batch:
    """Samples 0 to 3: two texts and a signal, a signal, a text, nothing (not valid)."""
    generator = torch.Generator().manual_seed(rank)
    text = Input(
        torch.randint(0, 10, (5, 6), generator=generator),
        owner=torch.tensor([0, 0, NOBODY, 2, NOBODY]),
        present=torch.tensor([True, False, True, False]),
        length=torch.tensor([6, 2, 1, 3, 1]),
    )
    signal = Input(
        torch.randn(4, 4, 3, generator=generator),
        owner=torch.tensor([0, 1, NOBODY, NOBODY]),
        present=torch.tensor([True, True, False, False]),
        length=torch.tensor([4, 3, 1, 1]),
    )
    return Batch(
        keys=("a", "b", "c", ""),
        place=torch.tensor([10, 11, 12, 13]) + 4 * rank,
        valid=torch.tensor([True, True, True, False]),
        group=torch.tensor([0, 1, 2, NOBODY]),
        text=text,
        signal=signal,
    )


def without_text(batch: Batch) -> Batch:
    """The same rows, but nobody owns those of text."""
    assert batch.text is not None
    owner, present = torch.full_like(batch.text.owner, NOBODY), torch.zeros(4, dtype=torch.bool)
    return replace(batch, text=replace(batch.text, owner=owner, present=present))


def make_model(kind: Any = ProductFusion, **changes: Any) -> FusionClassifier:
    torch.manual_seed(0)
    parts = {
        "text": FusionTower(Words()),
        "signal": FusionTower(SignalEncoder(3, dim=16, num_layers=1)),
        "fusion": kind({"text": 8, "signal": 16}, dim=6),
        "head": ClassificationHead(6, classes=3, hidden=5),
    }
    return FusionClassifier(**parts | changes)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_of_samples(kind: Any) -> None:
    batch = make_batch()
    said = make_model(kind)(batch)
    assert said.logits.shape == (4, 3)
    assert said.logits.isfinite().all()
    assert torch.equal(said.place, batch.place)
    assert torch.equal(said.valid, batch.valid)


def test_logits_are_float32_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert make_model()(make_batch()).logits.dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_has_the_same_logits_alone(kind: Any) -> None:
    model, batch = make_model(kind), make_batch()
    whole = model(batch).logits
    for sample in range(4):
        alone = model(batch.select(torch.tensor([sample]))).logits
        torch.testing.assert_close(alone[0], whole[sample], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_what_an_absent_row_holds_changes_nothing(kind: Any) -> None:
    model, batch = make_model(kind), make_batch()
    assert batch.text is not None
    other = batch.text.data.clone()
    other[batch.text.owner == NOBODY] = 9
    changed = model(replace(batch, text=replace(batch.text, data=other))).logits
    assert torch.equal(changed, model(batch).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_every_tower_runs_once_and_has_a_gradient_whatever_is_missing(kind: Any) -> None:
    model = make_model(kind)
    model(without_text(make_batch())).logits.square().sum().backward()
    assert model.text.encoder.calls == 1
    assert (model.text.encoder.table.weight.grad == 0).all()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_parts_of_a_batch_stand_side_by_side() -> None:
    model, batch = make_model(), make_batch()
    parts, whole = run_in_parts(model, batch, 2), model(batch)
    torch.testing.assert_close(parts.logits, whole.logits, rtol=1e-5, atol=1e-6)
    assert torch.equal(parts.place, whole.place)


def test_a_head_is_mean_norm_hidden_and_linear_layer() -> None:
    head = ClassificationHead(4, classes=3, hidden=5)
    tokens = torch.randn(2, 2, 4, generator=torch.Generator().manual_seed(0))
    mean = tokens[0, :1].double().mean(dim=0)
    normal = (mean - mean.mean()) / (mean.var(unbiased=False) + 1e-5).sqrt()
    _, first, _, _, last = head.layers.double()
    hidden = nn.functional.gelu(first.weight @ normal + first.bias)
    expected = last.weight @ hidden + last.bias
    mask = torch.tensor([[True, False], [True, True]])
    logits = head.float()(Encoded(tokens, mask))
    torch.testing.assert_close(logits[0].double(), expected.double(), rtol=1e-5, atol=1e-6)
    assert ClassificationHead(4, classes=3).layers[-1].in_features == 4


def test_a_modality_that_the_data_lack_is_named() -> None:
    with pytest.raises(ValueError, match="tower for signal, but the data module reads no signal"):
        make_model()(replace(make_batch(), signal=None))


def test_parts_that_do_not_fit_together() -> None:
    with pytest.raises(
        ValueError, match=r"towers give \{'text': 8, 'signal': 16\}, but ProductFusion .*'text': 7"
    ):
        make_model(fusion=ProductFusion({"text": 7, "signal": 16}, dim=6))
    with pytest.raises(ValueError, match=r"towers give \{'text': 8\}, but ProductFusion is made for dims="):
        make_model(signal=None)
    with pytest.raises(ValueError, match="ClassificationHead is made for dim=5, but ProductFusion gives 6"):
        make_model(head=ClassificationHead(5, classes=3))
    with pytest.raises(ValueError, match="image tower has Words, an encoder of text"):
        make_model(image=FusionTower(Words()))
    with pytest.raises(ValueError, match=r"the towers give \{\}, but ProductFusion"):
        make_model(text=None, signal=None)


def ddp_step(kind: Any) -> list[Any]:
    """Gradients of one step under DDP, where only rank 0 owns texts."""
    rank = torch.distributed.get_rank()
    batch = make_batch(rank)
    model = nn.parallel.DistributedDataParallel(make_model(kind))
    model(batch if rank == 0 else without_text(batch)).logits.square().sum().backward()
    return [parameter.grad.numpy() for parameter in model.parameters()]


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_that_see_different_modalities_step_together(ranks: Any, kind: Any) -> None:
    first, second = ranks(ddp_step, kind)
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(torch.from_numpy(one), torch.from_numpy(other), rtol=0, atol=0)
