"""Recomputed blocks: the same gradients from fewer activations, under the same names; copies and pickles."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_micro_batch import gradients, make_batch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, WhisperConfig, WhisperModel

from mmlab.models.blocks import find_blocks
from mmlab.models.dual_encoder import DualEncoder, Tower
from mmlab.models.encoders.signal import SignalEncoder
from mmlab.parallel.micro_batch import run_in_parts
from mmlab.parallel.recompute import Recomputed, checkpoint_blocks, recomputing


def bert() -> nn.Module:
    config = BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32
    )
    return BertModel(config)


def whisper() -> nn.Module:
    config = WhisperConfig(
        vocab_size=30, d_model=16, encoder_layers=3, encoder_attention_heads=2, encoder_ffn_dim=32,
        dropout=0.1, max_source_positions=20, pad_token_id=0, decoder_layers=1, decoder_attention_heads=2,
    )  # fmt: skip
    return WhisperModel(config).encoder


def vit() -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, embed_dim=24, depth=4, num_heads=2, drop_path_rate=0.3
    )


def convolutions() -> nn.Module:
    return timm.create_model("test_efficientnet")


INPUTS: dict[str, dict[str, Tensor]] = {
    "bert": {"input_ids": torch.arange(24).reshape(4, 6)},
    "whisper": {"input_features": torch.randn(2, 80, 40, generator=torch.Generator().manual_seed(0))},
    "vit": {"x": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))},
    "convolutions": {"x": torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))},
}
MAKERS = {"bert": bert, "whisper": whisper, "vit": vit, "convolutions": convolutions}


class Holder(nn.Module):
    """A model whose one child is a network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, **inputs: Tensor) -> Tensor:
        output = self.network(**inputs)
        value: Tensor = output if isinstance(output, Tensor) else output.last_hidden_state
        return value


def make(kind: str) -> Holder:
    torch.manual_seed(0)
    return Holder(MAKERS[kind]()).train()


def trained(model: nn.Module, kind: str) -> tuple[int, dict[str, Tensor]]:
    """Bytes held at the end of a forward pass; then gradients and buffers."""
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return tensor

    torch.manual_seed(1)
    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(**INPUTS[kind]).square().mean()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    activations = sum(size for pointer, size in held.items() if pointer not in weights)
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return activations, gradients | dict(model.named_buffers())


@pytest.mark.parametrize("kind", MAKERS)
def test_gradients_and_statistics_stay_and_memory_falls(kind: str) -> None:
    plain, model = make(kind), make(kind)
    checkpoint_blocks(model, 1.0)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in model.named_modules()] == [name for name, _ in plain.named_modules()]
    held, expected = trained(plain, kind)
    fewer, found = trained(model, kind)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert fewer < 0.55 * held


def chosen(model: nn.Module) -> list[bool]:
    return [isinstance(vars(block.module).get("forward"), Recomputed) for block in find_blocks(model)]


class Unit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.linear(x)
        return hidden.tanh()


def stack(blocks: int) -> nn.Module:
    return Holder(nn.Sequential(nn.ModuleList([Unit() for _ in range(blocks)])))


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 30), st.floats(0, 1))
def test_the_share_is_spread_evenly(blocks: int, share: float) -> None:
    model = stack(blocks)
    checkpoint_blocks(model, share)
    found = chosen(model)
    count = sum(found)
    assert count == (0 if share == 0 else max(1, round(share * blocks)))
    # Any stretch of blocks has its part of them, to one.
    for length in range(1, blocks):
        for start in range(blocks - length + 1):
            assert abs(sum(found[start : start + length]) - count * length / blocks) <= 1


def test_a_second_call_replaces_the_first() -> None:
    model = stack(4)
    for share, expected in ((1.0, [True] * 4), (0.5, [False, True] * 2), (0.0, [False] * 4)):
        checkpoint_blocks(model, share)
        checkpoint_blocks(model, share)
        assert chosen(model) == expected


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_recomputes_its_own_blocks(copied: Any) -> None:
    model = make("bert")
    checkpoint_blocks(model, 0.5)
    other = copied(model)
    assert chosen(other) == chosen(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    _, found = trained(other, "bert")
    _, expected = trained(make("bert"), "bert")
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_only_the_second_pass_says_that_it_recomputes() -> None:
    model, seen = make("bert"), []
    checkpoint_blocks(model, 1.0)
    block = find_blocks(model)[0].module
    next(block.children()).register_forward_hook(lambda *_: seen.append(recomputing()))
    loss = model(**INPUTS["bert"]).sum()
    assert seen == [False]
    loss.backward()
    assert seen == [False, True]
    assert not recomputing()
    with torch.no_grad():
        model(**INPUTS["bert"])
    assert seen == [False, True, False]


def test_blocks_within_parts_of_a_batch() -> None:
    torch.manual_seed(0)
    batch = make_batch([1, 2, 0, 1, 1])
    model = DualEncoder(signal=Tower(SignalEncoder(3, dim=16, num_layers=3, dropout=0.3), dim=8))
    losses = []
    for share in (0.0, 1.0):
        checkpoint_blocks(model, share)
        torch.manual_seed(2)
        output = run_in_parts(model, batch, 2).signal
        losses.append(gradients(model, (output.vector @ output.vector.T).exp().mean()))
    assert all(torch.equal(losses[1][name], value) for name, value in losses[0].items())


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"checkpointing=0\.5: Holder has no repeated layers"):
        checkpoint_blocks(Holder(nn.Linear(2, 2)), 0.5)
    checkpoint_blocks(Holder(nn.Linear(2, 2)), 0.0)
