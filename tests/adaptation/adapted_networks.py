"""Small networks of every kind that an adaptation meets, and how to run each."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import timm
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model, LlamaConfig, LlamaModel, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from mmlab.batch import Input
from mmlab.models.encoders.signal import SignalEncoder


class Subject(NamedTuple):
    """A network in evaluation mode, and what it gives for a fixed input in its own precision."""

    network: nn.Module
    run: Callable[[nn.Module], Tensor]


def _dtype(network: nn.Module) -> torch.dtype:
    return next(network.parameters()).dtype


def _noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


def _tokens(network: nn.Module) -> Tensor:
    return network(input_ids=torch.arange(12).view(2, 6)).last_hidden_state


def _frames(network: nn.Module) -> Tensor:
    return network(_noise(2, 8, 40).to(_dtype(network))).last_hidden_state


def _steps(network: nn.Module) -> Tensor:
    rows = torch.tensor([0, 1])
    inputs = Input(
        _noise(2, 9, 3).to(_dtype(network)), owner=rows, present=rows >= 0, length=torch.tensor([9, 5])
    )
    return network(inputs).tokens


def bert() -> Subject:
    config = BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    return Subject(BertModel(config, add_pooling_layer=False).eval(), _tokens)


def gpt2() -> Subject:
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    return Subject(
        GPT2Model(GPT2Config(vocab_size=30, n_embd=16, n_layer=2, n_head=2, n_positions=16, **ends)).eval(),
        _tokens,
    )


def llama() -> Subject:
    config = LlamaConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=32,
    )  # fmt: skip
    return Subject(LlamaModel(config).eval(), _tokens)


def whisper() -> Subject:
    config = WhisperConfig(
        vocab_size=40, num_mel_bins=8, d_model=16, encoder_layers=2, encoder_attention_heads=2,
        encoder_ffn_dim=32, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=16,
        max_source_positions=20, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=3,
    )  # fmt: skip
    return Subject(WhisperEncoder(config).eval(), _frames)


def signal() -> Subject:
    return Subject(SignalEncoder(3, dim=16, num_layers=2, num_heads=2).eval(), _steps)


def vision(name: str) -> Subject:
    """A timm model; norms that it starts at zero are set to one, as they would hide what is behind them."""
    size = {"img_size": 32} if name == "test_vit" else {}
    network = timm.create_model(name, num_classes=0, **size).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    return Subject(network, lambda model: model.forward_features(_noise(2, 3, 32, 32).to(_dtype(model))))


SUBJECTS: dict[str, Callable[[], Subject]] = {
    "bert": bert,
    "gpt2": gpt2,
    "llama": llama,
    "whisper": whisper,
    "signal": signal,
    "vit": lambda: vision("test_vit"),
    "resnet": lambda: vision("test_resnet"),
    "efficientnet": lambda: vision("test_efficientnet"),
    "convnext": lambda: vision("test_convnext"),
}


def shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in network.state_dict().items()}


def distance(a: Tensor, b: Tensor) -> float:
    """Largest difference, as a share of the largest value."""
    a, b = a.detach(), b.detach()
    return float((a - b).abs().max() / b.abs().max())
