from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
import torch
from adapted_networks import SUBJECTS, bert, distance, gpt2, llama, shapes, vision
from torch import Tensor, nn

from mmlab.adaptation.ia3 import IA3
from mmlab.adaptation.method import within
from mmlab.models.blocks import find_blocks


def trained(network: nn.Module, method: IA3) -> dict[str, nn.Parameter]:
    return {name: p for name, p in network.named_parameters() if method.trainable(name, p)}


@torch.no_grad()
def move(parameters: dict[str, nn.Parameter]) -> None:
    generator = torch.Generator().manual_seed(0)
    for parameter in parameters.values():
        parameter += 0.3 * torch.randn(parameter.shape, generator=generator).to(parameter)


def layers(network: nn.Module, method: IA3) -> set[str]:
    return {name.removesuffix(".ia3_l.default") for name in trained(network, method)}


@pytest.mark.parametrize("name", SUBJECTS)
def test_starts_with_the_function_of_the_network_and_merges_exactly(name: str) -> None:
    torch.manual_seed(0)
    built, run = SUBJECTS[name]()
    for dtype, exact in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        network = copy.deepcopy(built).to(dtype)
        plain, before = shapes(network), run(network)
        method = IA3()
        network = method.apply(network).eval()
        assert distance(run(network), before) <= exact
        parts = trained(network, method)
        assert parts
        assert all(p.dtype == dtype and p.requires_grad and bool((p == 1).all()) for p in parts.values())
        move(parts)
        after = run(network)
        assert distance(after, before) > 10 * exact or name == "convnext"
        after.square().sum().backward()
        assert all(p.grad is not None for p in parts.values())
        network = method.merge(network)
        assert shapes(network) == plain
        assert distance(run(network), after) <= exact


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        (bert, {"attention.self.key", "attention.self.value", "output.dense"}),
        (llama, {"self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj"}),
        (gpt2, {"attn.c_attn", "mlp.c_proj"}),
        (lambda: vision("test_vit"), {"attn.qkv", "mlp.fc2"}),
        (lambda: vision("test_efficientnet"), {"conv_pwl"}),
        (lambda: vision("test_resnet"), {"conv2"}),
    ],
)
def test_by_default_keys_values_and_what_ends_the_feed_forward(subject: Any, expected: set[str]) -> None:
    method, network = IA3(), subject().network
    blocks = [block.path for block in find_blocks(network)]
    found = layers(method.apply(network), method)
    assert {
        path.removeprefix(f"{block}.") for path in found for block in blocks if within(path, block)
    } == expected


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft 0.21 reads it
def test_equals_a_peft_model() -> None:
    torch.manual_seed(0)
    network, run = bert()
    targets = ["key", "value", "output.dense"]
    config = peft.IA3Config(target_modules=targets, feedforward_modules=["output.dense"])
    reference: Any = peft.get_peft_model(copy.deepcopy(network), config).eval()
    method = IA3(["*.key", "*.value"], ["*output.dense"])
    network = method.apply(network).eval()
    parts = trained(network, method)
    theirs = {name.removeprefix("base_model.model."): p for name, p in reference.named_parameters()}
    assert set(parts) == {name for name, p in theirs.items() if p.requires_grad}
    for own in (parts, {name: theirs[name] for name in parts}):
        move(own)
    torch.testing.assert_close(run(network), run(reference), rtol=0, atol=1e-6)


def test_the_formula() -> None:
    """Outputs times a vector, inputs times a vector (equation 1 and below, section 3.3)."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)).double()
    network = copy.deepcopy(plain)
    method = IA3(["0"], ["1"])
    method.apply(network)
    parts = trained(network, method)
    move(parts)
    outputs, inputs = (p.flatten() for p in parts.values())
    rows = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(network(rows), plain[1](plain[0](rows) * outputs * inputs), rtol=0, atol=1e-12)


class Mixer(nn.Module):
    """A network without attention, feed-forward or convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(3, 4)
        self.frames = nn.Conv1d(4, 4, 3)
        self.linear = nn.Linear(4, 4)

    def forward(self, rows: Tensor) -> Tensor:
        raise AssertionError("no test runs it")


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (IA3(), "ia3: Mixer has no attention, feed-forward or convolution that can be scaled: name layers"),
        (IA3(["liner"]), "ia3: no linear layer or convolution is called 'liner'; nearest: linear"),
        (IA3(["linear"], ["linear"]), "ia3: targets and feedforward both name linear: keep it in one"),
        (IA3(["frames"]), "ia3: frames .* is a Conv1d, which IA3 has no form of"),
    ],
)
def test_mistakes_are_named(method: IA3, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        method.apply(Mixer())


def test_torch_layers_do_not_bypass_what_was_added() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    method = IA3()
    network = method.apply(nn.TransformerEncoder(layer, 2)).eval()
    assert layers(network, method) == {"layers.0.linear2", "layers.1.linear2"}
    move(trained(network, method))
    tokens = torch.randn(2, 5, 16)
    with torch.no_grad():
        without = network(tokens)
    torch.testing.assert_close(without, network(tokens), rtol=0, atol=1e-6)


def test_beside_frozen_weights_in_bfloat16() -> None:
    network, run = bert()
    method = IA3()
    network = method.apply(network).eval()
    parts = trained(network, method)
    for name, p in network.named_parameters():
        if name not in parts:
            p.data = p.data.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        after = run(network)
        after.float().square().sum().backward()
    assert all(p.dtype == torch.float32 and p.grad is not None for p in parts.values())
    merged = method.merge(network)
    with torch.autocast("cpu", torch.bfloat16):
        assert distance(run(merged), after) < 0.05
    assert {p.dtype for p in merged.parameters()} == {torch.float32}
