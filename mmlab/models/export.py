"""Encoders as folders that other programs, and `TextEncoder(name=FOLDER)`, read."""

from __future__ import annotations

import shutil
from pathlib import Path

import timm.models
import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel

from mmlab.models.encoders.audio import WhisperEncoder
from mmlab.models.encoders.encoder import Encoder
from mmlab.models.encoders.image import ImageEncoder
from mmlab.models.encoders.text import TextEncoder
from mmlab.models.pretrained import load_model, quiet


def export_encoder(encoder: Encoder, folder: Path) -> bool:
    """Write a pretrained encoder in its own format: config.json and model.safetensors.

    Of a model that is the encoding half of another (Whisper, T5), the other half is written as it was
    released. The folder is read again before this returns.

    Args:
        encoder: Plain, without anything that an adaptation added.
        folder: Made anew.

    Returns:
        False where the encoder has no format beside mmlab's, as with a layout, or the other half cannot be
        had; nothing is written then.
    """
    if not isinstance(encoder, TextEncoder | ImageEncoder | WhisperEncoder):
        return False
    if isinstance(encoder, TextEncoder) and encoder.layout is not None:
        return False  # the folder would hold the encoder without it
    try:
        if isinstance(encoder, ImageEncoder):
            timm.models.save_for_hf(encoder.backbone, str(folder), safe_serialization=True)
        else:
            whole = _whole(encoder.backbone, encoder.name)
            with quiet():
                whole.save_pretrained(folder)
        again = type(encoder)(str(folder))
    except (OSError, ValueError):
        shutil.rmtree(folder, ignore_errors=True)
        return False
    if not _same(again.backbone, encoder.backbone):
        shutil.rmtree(folder)
        return False
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors makes files that only their owner can read
    return True


def _whole(backbone: PreTrainedModel, name: str) -> PreTrainedModel:
    """The model that a folder of this architecture holds."""
    if AutoModel._model_mapping[type(backbone.config)] is type(backbone):
        return backbone
    whole = load_model(name, pretrained=True)
    whole.encoder = backbone
    whole.config.encoder_layers = len(backbone.layers) if hasattr(backbone, "layers") else None
    return whole


def _same(first: nn.Module, second: nn.Module) -> bool:
    """Whether two networks hold the same weights."""
    one, other = first.state_dict(), second.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name].cpu()) for name in one)
