"""A pretraining model of a few thousand parameters, and batches of text and movements for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tiny_encoders import tiny_bert
from tiny_language import wordpiece

from mmlab.batch import NOBODY, Batch, Input
from mmlab.models.caption_decoder import CaptionDecoder
from mmlab.models.dual_encoder import Tower
from mmlab.models.encoders.signal import SignalEncoder
from mmlab.models.encoders.text import TextEncoder
from mmlab.models.fusion.transformer import TransformerFusion
from mmlab.models.pretraining_model import PretrainingModel

ALL = ("masked", "matching", "captioning")


def tiny_text(folder: Path) -> Path:
    """A text encoder of size 32 with a tokenizer that has a mask token."""
    tokenizer = wordpiece()
    tokenizer.save_pretrained(folder)
    return tiny_bert(folder, vocabulary=len(tokenizer))


def make_model(text: Path, parts: Sequence[str] = ALL, *, seed: int = 0, **settings: Any) -> PretrainingModel:
    """Without dropout, so that rows can be compared."""
    torch.manual_seed(seed)
    fused = "masked" in parts or "matching" in parts
    given: dict[str, Any] = {
        "signal": Tower(SignalEncoder(3, dim=16, num_layers=2), dim=8),
        "fusion": TransformerFusion({"text": 32, "signal": 16}, dim=12, num_heads=2) if fused else None,
        "decoder": CaptionDecoder(12, words=32, sees=16, num_heads=2) if "captioning" in parts else None,
        "masked": "masked" in parts,
        "matching": "matching" in parts,
    }
    tower = Tower(TextEncoder(str(text), dropout=0.0), dim=8)
    return PretrainingModel(tower, **(given | settings))


def make_batch(samples: int = 6, *, lacks_text: int | None = None, lacks_signal: int | None = None) -> Batch:
    """The last sample is padding; sample 1 has two texts."""
    generator = torch.Generator().manual_seed(1)
    valid = torch.arange(samples) < samples - 1
    texts = [n for n in range(samples) for _ in range(2 if n == 1 else 1)]
    tokens = torch.randint(4, 36, (len(texts), 9), generator=generator)
    length = torch.randint(4, 10, (len(texts),), generator=generator)
    tokens[:, 0] = 2
    tokens[torch.arange(len(texts)), length - 1] = 3
    tokens[torch.arange(9) >= length[:, None]] = 0

    def owned(owner: list[int], lacking: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        own = torch.tensor([NOBODY if n == lacking or n == samples - 1 else n for n in owner])
        present = torch.tensor([n in own.tolist() for n in range(samples)])
        return own, present

    text_owner, text_there = owned(texts, lacks_text)
    signal_owner, signal_there = owned(list(range(samples)), lacks_signal)
    return Batch(
        keys=tuple("abcdefghijklmn"[:samples]),
        place=torch.arange(samples) + 20,
        valid=valid,
        group=torch.where(valid, torch.arange(samples) // 2, NOBODY),
        text=Input(tokens, text_owner, text_there, length),
        signal=Input(
            torch.randn(samples, 5, 3, generator=generator),
            signal_owner,
            signal_there,
            torch.randint(2, 6, (samples,), generator=generator),
        ),
    )
