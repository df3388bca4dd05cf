"""What each modality says alone: as if all others were missing, for any fusion, or by a head of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from fused import FUSIONS
from test_missing import make_batch, make_model

from mmlab.batch import Modality
from mmlab.models.fusion.missing import Substitution
from mmlab.models.unimodal import MaskedPasses, OwnHeads
from mmlab.parallel.micro_batch import run_in_parts

DIMS = {Modality.TEXT: 8, Modality.SIGNAL: 8}


def without(batch: Any, modality: str) -> Any:
    return replace(batch, **{modality: getattr(batch, modality).without(torch.ones(4, dtype=torch.bool))})


@pytest.mark.parametrize("kind", FUSIONS)
def test_it_is_as_if_all_others_were_missing(kind: str) -> None:
    model, batch = make_model(kind), make_batch()
    model.unimodal = MaskedPasses()
    said = model.train()(batch)
    assert said.alone is not None
    logits, present = said.alone
    assert present.tolist() == [[True, True], [False, True], [True, False], [True, True]]
    assert not logits.requires_grad
    torch.testing.assert_close(logits[:, 0], model(without(batch, "signal")).logits)
    torch.testing.assert_close(logits[:, 1], model(without(batch, "text")).logits)
    assert model.eval()(batch).alone is None


def test_what_stands_in_their_place_does_not_count_as_seen() -> None:
    fill = Substitution({"text": 8, "signal": 8}, kind="mean")
    model, batch = make_model("transformer", missing=fill), make_batch()
    model.train()(batch)
    once = [buffer.clone() for buffer in fill.buffers()]
    for buffer in fill.buffers():
        buffer.zero_()
    model.unimodal = MaskedPasses()
    model(batch)
    for one, other in zip(once, fill.buffers(), strict=True):
        assert torch.equal(one, other)


def test_modality_dropout_leaves_nothing_out_of_it() -> None:
    model, batch = make_model(modality_dropout=0.9), make_batch()
    model.unimodal = MaskedPasses()
    alone = model.train()(batch).alone
    assert torch.equal(
        alone.present, torch.stack([batch.signal.present, batch.text.present], dim=1)[:, [1, 0]]
    )


@pytest.mark.parametrize("unimodal", [MaskedPasses(), OwnHeads(DIMS, classes=3)])
def test_parts_of_a_batch_say_what_the_whole_says(unimodal: Any) -> None:
    model, batch = make_model("bottleneck"), make_batch()
    model.unimodal = unimodal
    found = []
    for parts in (False, True):
        model.zero_grad()
        said = run_in_parts(model, batch, 2) if parts else model(batch)
        loss = said.logits.square().sum()
        if said.alone.logits.requires_grad:
            loss = loss + said.alone.logits[said.alone.present].square().sum()
        loss.backward()
        found.append([*said.alone, *(p.grad for p in model.parameters() if p.grad is not None)])
    for whole, part in zip(*found, strict=True):
        torch.testing.assert_close(part, whole, rtol=1e-4, atol=1e-5)


def test_a_head_of_its_own_reads_its_tower_alone_and_always_has_a_gradient() -> None:
    model, batch = make_model(), make_batch()
    model.unimodal = OwnHeads(DIMS, classes=3)
    alone = model(batch).alone
    tokens = model.text(batch.text)
    mean = tokens.tokens[0, :3].mean(dim=0)
    torch.testing.assert_close(alone.logits[0, 0], model.unimodal.heads["text"].layers(mean))
    nothing = without(batch, "text")
    logits, present = model(nothing).alone
    assert logits.isfinite().all()
    (logits * present[:, :, None]).square().sum().backward()
    for name, parameter in model.named_parameters():
        if not name.startswith(("fusion", "head")):
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
