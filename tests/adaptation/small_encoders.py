"""One small encoder of each kind, rows for it, and what a method trains in it."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from transformers import BertConfig, LlamaConfig, PreTrainedConfig, T5Config, WhisperConfig

from mmlab.adaptation.method import Method
from mmlab.batch import Input
from mmlab.models.encoders.audio import WhisperEncoder
from mmlab.models.encoders.encoder import Encoder
from mmlab.models.encoders.image import ImageEncoder
from mmlab.models.encoders.signal import SignalEncoder
from mmlab.models.encoders.text import TextEncoder

SIZES = {
    "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "max_position_embeddings": 40,
}  # fmt: skip
BERT = BertConfig(**SIZES)
LLAMA = LlamaConfig(**SIZES, num_key_value_heads=2, bos_token_id=1, eos_token_id=2)
T5 = T5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
WHISPER = WhisperConfig(
    vocab_size=50, d_model=32, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2,
    decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, pad_token_id=0, bos_token_id=0,
    eos_token_id=0, decoder_start_token_id=0,
)  # fmt: skip


def from_config(kind: type[Encoder], config: PreTrainedConfig) -> Encoder:
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        return kind(folder, pretrained=False)


ENCODERS: dict[str, Callable[[], Encoder]] = {
    "bert": lambda: from_config(TextEncoder, BERT),
    "llama": lambda: from_config(TextEncoder, LLAMA),
    "t5": lambda: from_config(TextEncoder, T5),
    "whisper": lambda: from_config(WhisperEncoder, WHISPER),
    "vit": lambda: ImageEncoder("test_vit", pretrained=False, image_size=32),
    "efficientnet": lambda: ImageEncoder("test_efficientnet", pretrained=False),
    "resnet": lambda: ImageEncoder("test_resnet", pretrained=False),
    "signal": lambda: SignalEncoder(3, dim=16),
}
SEQUENCES = ["bert", "llama", "t5", "whisper", "signal"]
"""Those whose rows are padded."""
TOKENS = [*SEQUENCES, "vit"]


@cache
def built(name: str) -> Encoder:
    torch.manual_seed(0)
    return ENCODERS[name]().eval()


def encoder(name: str, dtype: torch.dtype = torch.float32) -> Encoder:
    return copy.deepcopy(built(name)).to(dtype)


def rows(name: str) -> Input:
    """Three rows of different length, with rubbish behind their ends."""
    generator = torch.Generator().manual_seed(1)
    length: Tensor | None = torch.tensor([5, 2, 4])
    if name in ("bert", "llama", "t5"):
        data = torch.randint(3, 50, (3, 5), generator=generator)
    elif name == "whisper":
        length = length * 320
        data = torch.randn(3, 1600, generator=generator) / 10
    elif name == "signal":
        data = torch.randn(3, 5, 3, generator=generator)
    else:
        length, side = None, 32
        data = torch.randint(0, 256, (3, 3, side, side), generator=generator).to(torch.uint8)
    return Input(data, torch.arange(3), torch.ones(3, dtype=torch.bool), length)


def alone(inputs: Input, row: int) -> Input:
    one = slice(row, row + 1)
    data = inputs.data[one] if inputs.length is None else inputs.data[one, : int(inputs.length[row])]
    length = None if inputs.length is None else inputs.length[one]
    return Input(data, inputs.owner[:1], inputs.present[one], length)


def adapt(network: nn.Module, method: Method, size: float = 0.3) -> dict[str, nn.Parameter]:
    """Apply a method and move what it trains; returns that."""
    assert method.apply(network) is network
    trained = {}
    generator = torch.Generator().manual_seed(2)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(method.trainable(name, parameter))
        if parameter.requires_grad:
            trained[name] = parameter
            with torch.no_grad():
                parameter += (size * torch.randn(parameter.shape, generator=generator)).to(parameter)
    return trained
