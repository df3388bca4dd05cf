"""Encoders written as folders give the same when they are read again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from mmlab.models.encoders.audio import WhisperEncoder
from mmlab.models.encoders.encoder import Encoder
from mmlab.models.encoders.image import ImageEncoder
from mmlab.models.encoders.signal import SignalEncoder
from mmlab.models.encoders.text import TextEncoder
from mmlab.models.export import export_encoder
from mmlab.models.layout import Layout

pytest_plugins = "tiny_parts"


def moved(encoder: Encoder) -> Encoder:
    """With weights of its own, as after training."""
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return encoder.eval()


def check(encoder: Encoder, again: Encoder) -> None:
    inputs = encoder.example()
    with torch.no_grad():
        wanted, found = encoder(inputs), again.eval()(inputs)
    assert torch.equal(wanted.tokens, found.tokens)


@pytest.mark.parametrize("part", ["tiny_bert", "tiny_llama", "tiny_t5"])
def test_text(part: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    encoder = moved(TextEncoder(str(request.getfixturevalue(part))))
    assert export_encoder(encoder, tmp_path / "text")
    assert {path.name for path in (tmp_path / "text").iterdir()} >= {"config.json", "model.safetensors"}
    check(encoder, TextEncoder(str(tmp_path / "text")))


@pytest.mark.parametrize("layers", [None, 2])
def test_whisper(tiny_whisper: Path, tmp_path: Path, layers: int | None) -> None:
    encoder = moved(WhisperEncoder(str(tiny_whisper), num_layers=layers))
    assert export_encoder(encoder, tmp_path / "audio")
    check(encoder, WhisperEncoder(str(tmp_path / "audio")))


@pytest.mark.parametrize(
    "build",
    [
        lambda: ImageEncoder("test_resnet", pretrained=False),
        lambda: ImageEncoder("test_vit", pretrained=False, image_size=96),
    ],
)
def test_images(build: Callable[[], ImageEncoder], tmp_path: Path) -> None:
    encoder = moved(build())
    assert export_encoder(encoder, tmp_path / "image")
    check(encoder, ImageEncoder(str(tmp_path / "image")))


def test_what_has_no_format_of_its_own_is_left_out(tmp_path: Path) -> None:
    assert not export_encoder(SignalEncoder(2, dim=8), tmp_path / "signal")
    assert not (tmp_path / "signal").exists()


def test_a_layout_would_be_lost(tiny_bert: Path, tmp_path: Path) -> None:
    encoder = moved(TextEncoder(str(tiny_bert), layout=Layout(32)))
    assert not export_encoder(encoder, tmp_path / "text")
    assert not (tmp_path / "text").exists()


def test_what_would_not_be_read_again_is_left_out(tiny_bert: Path, tmp_path: Path) -> None:
    encoder = TextEncoder(str(tiny_bert))
    query = encoder.backbone.encoder.layer[0].attention.self.query
    encoder.backbone.encoder.layer[0].attention.self.query = nn.Sequential(query, nn.Linear(32, 32))
    assert not export_encoder(encoder, tmp_path / "text")
    assert not (tmp_path / "text").exists()
