"""Embeddings of places: their formula, none at the start, trained by every method, and what does not fit."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mmlab.adaptation.policy import METHODS, Policy
from mmlab.batch import Input
from mmlab.models.encoders.text import TextEncoder
from mmlab.models.layout import Layout
from mmlab.models.word_tagger import WordTagger

pytest_plugins = "tiny_parts"


def page(rows: int = 3, tokens: int = 7) -> Input:
    """Token ids of different lengths with boxes."""
    generator = torch.Generator().manual_seed(0)
    ends = torch.randint(0, 1001, (rows, tokens, 2, 2), generator=generator).sort(dim=2).values
    return Input(
        torch.randint(1, 50, (rows, tokens), generator=generator),
        torch.arange(rows),
        torch.ones(rows, dtype=torch.bool),
        torch.tensor([tokens, 2, 4])[:rows],
        box=torch.cat([ends[:, :, 0], ends[:, :, 1]], dim=2) / 1000,
    )


def test_against_the_formula_in_float64() -> None:
    layout = Layout(5, octaves=3)
    torch.nn.init.normal_(layout.project.weight)
    torch.nn.init.normal_(layout.project.bias)
    box = page().box
    assert box is not None
    left, top, right, bottom = box.double().unbind(dim=2)
    waves = [
        wave(math.pi * 2**octave * number)
        for number in (left, top, right, bottom, right - left, bottom - top)
        for wave in (torch.sin, torch.cos)
        for octave in range(3)
    ]
    weight, bias = layout.project.weight.double(), layout.project.bias.double()
    expected = torch.stack(waves, dim=2) @ weight.T + bias
    torch.testing.assert_close(layout(box).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
def test_it_changes_nothing_at_the_start_and_learns(kind: str, request: pytest.FixtureRequest) -> None:
    folder = str(request.getfixturevalue(f"tiny_{kind}"))
    encoder, plain = TextEncoder(folder, layout=Layout(32)).eval(), TextEncoder(folder).eval()
    inputs = page()
    tokens, mask = encoder(inputs)
    torch.testing.assert_close(tokens[mask], plain(inputs).tokens[mask])
    tokens[mask].square().sum().backward()
    assert encoder.layout is not None
    for name, parameter in encoder.layout.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"probe"}))
def test_every_method_trains_it(method: Any, tiny_bert: Path) -> None:
    """Fixed, it would be zero for ever. It is kept in checkpoints, and no pretrained weight."""
    tagger = WordTagger(TextEncoder(str(tiny_bert), layout=Layout(32)), tags=3)
    plain = WordTagger(TextEncoder(str(tiny_bert)), tags=3)
    policy, other = Policy({"text": method}), Policy({"text": method})
    other.apply(plain)
    policy.apply(tagger)
    names = {"text.layout.project.weight", "text.layout.project.bias"}
    assert all(policy.trainable(name) for name in names)
    assert names <= policy.kept(tagger)
    assert policy.bases == other.bases


def test_it_stays_fixed_where_that_is_asked_for(tiny_bert: Path) -> None:
    tagger = WordTagger(TextEncoder(str(tiny_bert), layout=Layout(32)), tags=3)
    policy = Policy({"text.layout": "frozen", "text.backbone": "bitfit"})
    policy.apply(tagger)
    assert not policy.trainable("text.layout.project.weight")


def test_what_does_not_fit(tiny_bert: Path) -> None:
    with pytest.raises(ValueError, match=r"layout\.dim=16, but .* reads tokens of size 32: set it so"):
        TextEncoder(str(tiny_bert), layout=Layout(16))
    with pytest.raises(ValueError, match=r"layout\.octaves=0: at least 1"):
        Layout(32, octaves=0)
    encoder: Any = TextEncoder(str(tiny_bert), layout=Layout(32))
    with pytest.raises(ValueError, match=r"the data read no boxes: set data\.text\.boxes"):
        encoder(replace(page(), box=None))
    encoder.try_out()  # as adaptation does
