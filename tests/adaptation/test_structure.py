from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from small_encoders import BERT, LLAMA, SIZES, T5, WHISPER
from torch import nn
from transformers import (
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
    LlamaModel,
    Phi3Config,
    Phi3Model,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5Model,
    ViTConfig,
    ViTModel,
    WhisperModel,
)

from mmlab.adaptation.structure import Sublayers, layer_size, sublayers
from mmlab.models.blocks import find_blocks
from mmlab.models.encoders.signal import SignalEncoder

DISTIL = DistilBertConfig(vocab_size=50, dim=32, hidden_dim=64, n_layers=2, n_heads=4)
GPT2 = GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
QWEN = Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=16)
"""Its attention is as wide inside as its feed-forward."""
PHI = Phi3Config(**SIZES, num_key_value_heads=2, pad_token_id=0, bos_token_id=0, eos_token_id=0)
GATED = T5Config(
    vocab_size=50, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
)
VIT = ViTConfig(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    image_size=32,
    patch_size=16,
)


def heads(prefix: str, *names: str) -> list[str]:
    return [f"{prefix}.{name}" for name in names]


PROJECTIONS = ("q_proj", "k_proj", "v_proj")
MODELS: dict[str, tuple[Callable[[], nn.Module], str, Sublayers]] = {
    "bert": (lambda: BertModel(BERT), "encoder.layer.1", Sublayers(
        heads("attention.self", "query", "key", "value"), "attention.output.dense",
        ["intermediate.dense"], "output.dense",
    )),
    "distilbert": (lambda: DistilBertModel(DISTIL), "transformer.layer.0", Sublayers(
        heads("attention", "q_lin", "k_lin", "v_lin"), "attention.out_lin", ["ffn.lin1"], "ffn.lin2",
    )),
    "gpt2": (lambda: GPT2Model(GPT2), "h.0", Sublayers(
        ["attn.c_attn"], "attn.c_proj", ["mlp.c_fc"], "mlp.c_proj",
    )),
    "llama": (lambda: LlamaModel(LLAMA), "layers.0", Sublayers(
        heads("self_attn", *PROJECTIONS), "self_attn.o_proj",
        heads("mlp", "gate_proj", "up_proj"), "mlp.down_proj",
    )),
    "qwen3": (lambda: Qwen3Model(QWEN), "layers.0", Sublayers(
        heads("self_attn", *PROJECTIONS), "self_attn.o_proj",
        heads("mlp", "gate_proj", "up_proj"), "mlp.down_proj",
    )),
    "phi3": (lambda: Phi3Model(PHI), "layers.0", Sublayers(
        ["self_attn.qkv_proj"], "self_attn.o_proj", ["mlp.gate_up_proj"], "mlp.down_proj",
    )),
    "t5 encoder": (lambda: T5Model(T5), "encoder.block.0", Sublayers(
        heads("layer.0.SelfAttention", "q", "k", "v"), "layer.0.SelfAttention.o",
        ["layer.1.DenseReluDense.wi"], "layer.1.DenseReluDense.wo",
    )),
    "t5 decoder, gated": (lambda: T5Model(GATED), "decoder.block.0", Sublayers(
        heads("layer.1.EncDecAttention", "q", "k", "v"), "layer.1.EncDecAttention.o",
        heads("layer.2.DenseReluDense", "wi_0", "wi_1"), "layer.2.DenseReluDense.wo",
    )),
    "whisper encoder": (lambda: WhisperModel(WHISPER), "encoder.layers.0", Sublayers(
        heads("self_attn", "k_proj", "v_proj", "q_proj"), "self_attn.out_proj", ["fc1"], "fc2",
    )),
    "whisper decoder": (lambda: WhisperModel(WHISPER), "decoder.layers.0", Sublayers(
        heads("encoder_attn", "k_proj", "v_proj", "q_proj"), "encoder_attn.out_proj", ["fc1"], "fc2",
    )),
    "transformers vit": (lambda: ViTModel(VIT), "layers.0", Sublayers(
        heads("attention", *PROJECTIONS), "attention.o_proj", ["mlp.fc1"], "mlp.fc2",
    )),
    "signal": (lambda: SignalEncoder(3, dim=16), "layers.0", Sublayers(
        ["query", "key", "value"], "out", ["widen"], "narrow",
    )),
    "torch": (lambda: nn.TransformerEncoderLayer(8, 2, 16), "", Sublayers(
        [], "self_attn", ["linear1"], "linear2",
    )),
    "torch decoder": (lambda: nn.TransformerDecoderLayer(8, 2, 16), "", Sublayers(
        [], "multihead_attn", ["linear1"], "linear2",
    )),
}  # fmt: skip
VIT_BLOCK = Sublayers(["attn.qkv"], "attn.proj", ["mlp.fc1"], "mlp.fc2")
NOTHING = Sublayers([], None, [], None)
TIMM: dict[str, tuple[str, Sublayers]] = {
    "test_vit": ("blocks.0", VIT_BLOCK),
    "swin_tiny_patch4_window7_224": ("layers.1.blocks.1", VIT_BLOCK),
    "swinv2_cr_tiny_224": ("stages.0.blocks.0", VIT_BLOCK),
    "eva02_tiny_patch14_224": ("blocks.0", VIT_BLOCK),
    "xcit_nano_12_p16_224": ("blocks.0", VIT_BLOCK),
    "convnext_atto": ("stages.1.blocks.0", Sublayers([], None, ["mlp.fc1"], "mlp.fc2")),
    "mixer_s32_224": ("blocks.0", Sublayers([], None, ["mlp_channels.fc1"], "mlp_channels.fc2")),
    "tf_efficientnet_lite0": ("blocks.3.1", Sublayers([], None, ["conv_pw"], "conv_pwl")),
    "efficientnet_b0": ("blocks.3.1", Sublayers([], None, ["conv_pw"], "conv_pwl")),
    "mobilenetv4_conv_small": ("blocks.2.0", Sublayers([], None, ["pw_exp.conv"], "pw_proj.conv")),
    "test_efficientnet": ("blocks.1.0", NOTHING),
    "resnet18": ("layer2.0", NOTHING),
    "resnet50": ("layer2.1", NOTHING),
    "seresnet50": ("layer2.1", NOTHING),
    "maxvit_tiny_tf_224": ("stages.0.blocks.1", Sublayers(
        ["attn_grid.attn.qkv"], "attn_grid.attn.proj", ["attn_grid.mlp.fc1"], "attn_grid.mlp.fc2",
    )),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_layers_of_transformers_and_torch(name: str) -> None:
    build, path, expected = MODELS[name]
    assert sublayers(build().get_submodule(path)) == expected


@pytest.mark.parametrize("name", TIMM)
def test_layers_of_timm(name: str) -> None:
    path, expected = TIMM[name]
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=0)
    assert path in [block.path for block in find_blocks(network)]
    assert sublayers(network.get_submodule(path)) == expected


@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (nn.Linear(2, 3), (2, 3)),
        (nn.Conv2d(2, 3, 1), (2, 3)),
        (nn.Conv1d(2, 3, 1), (2, 3)),
        (nn.Conv2d(2, 3, 3), None),
        (nn.Conv2d(2, 3, 1, stride=2), None),
        (nn.Conv2d(2, 4, 1, groups=2), None),
        (nn.LayerNorm(3), None),
    ],
)
def test_size_of_a_layer(layer: nn.Module, size: Any) -> None:
    assert layer_size(layer) == size
