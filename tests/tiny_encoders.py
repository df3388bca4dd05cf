"""Encoders of a few thousand parameters, as folders that names in a config can be."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import BertConfig, BertModel, WhisperConfig, WhisperForConditionalGeneration


def tiny_bert(folder: Path, *, vocabulary: int) -> Path:
    """Write a text encoder of size 32, without a tokenizer."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def tiny_whisper_folder(folder: Path) -> Path:
    """Write a speech model of size 32 with one layer."""
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=50, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, pad_token_id=0, bos_token_id=0,
        eos_token_id=0, decoder_start_token_id=0,
    )  # fmt: skip
    WhisperForConditionalGeneration(config).save_pretrained(folder)
    return folder
