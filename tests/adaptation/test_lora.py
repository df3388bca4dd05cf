from __future__ import annotations

import copy
import math
from typing import Any

import peft
import pytest
import torch
import torch.nn.functional as F
from adapted_networks import SUBJECTS, bert, distance, shapes, vision
from torch import Tensor, nn

from mmlab.adaptation.injected import PATIENCE
from mmlab.adaptation.lora import LoRA, principal
from mmlab.adaptation.policy import Policy
from mmlab.batch import Input
from mmlab.models.dual_encoder import Tower
from mmlab.models.encoders.signal import SignalEncoder

KINDS = ["lora", "rslora", "dora", "adalora", "pissa"]


def adapted(network: nn.Module, **settings: Any) -> tuple[nn.Module, LoRA]:
    method = LoRA(**settings)
    return method.apply(network).eval(), method


def trained(network: nn.Module, method: LoRA) -> dict[str, nn.Parameter]:
    return {name: p for name, p in network.named_parameters() if method.trainable(name, p)}


@torch.no_grad()
def move(parameters: dict[str, nn.Parameter], size: float = 0.05, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters.values():
        parameter += size * torch.randn(parameter.shape, generator=generator).to(parameter)


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for name in SUBJECTS for kind in KINDS if kind == "dora" or name in ("bert", "resnet")],
)
def test_starts_with_the_function_of_the_network_and_merges_exactly(name: str, kind: str) -> None:
    torch.manual_seed(0)
    built, run = SUBJECTS[name]()
    for dtype, exact in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        network = copy.deepcopy(built).to(dtype)
        plain, before = shapes(network), run(network)
        network, method = adapted(network, rank=2, kind=kind)
        assert distance(run(network), before) <= exact
        parts = trained(network, method)
        assert parts
        assert all(".lora_" in path and p.dtype == dtype and p.requires_grad for path, p in parts.items())
        move(parts)
        after = run(network)
        assert distance(after, before) > 10 * exact or name == "convnext"
        network = method.merge(network)
        assert shapes(network) == plain
        assert distance(run(network), after) <= exact


def add(layer: nn.Module, kind: str, **settings: Any) -> tuple[nn.Module, Any, float, Tensor]:
    """Adapt a layer in float64; gives the network, peft's layer, the scale, and B A in the weight's shape."""
    network = nn.Sequential(layer).double()
    network, method = adapted(network, kind=kind, rank=3, alpha=5.0, **settings)
    move(trained(network, method), size=0.5)
    wrapper = network[0]
    a, b = wrapper.lora_A["default"].weight, wrapper.lora_B["default"].weight
    scale = 5 / math.sqrt(3) if kind == "rslora" else 5 / 3
    return network, wrapper, scale, (b.flatten(1) @ a.flatten(1)).reshape(wrapper.base_layer.weight.shape)


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(7, 5), (2, 7)),
    "conv1d": (nn.Conv1d(7, 5, 3, padding=2, stride=2, dilation=2), (2, 7, 11)),
    "conv2d": (nn.Conv2d(7, 5, 3, padding="same", dilation=2, bias=False), (2, 7, 6, 5)),
    "pointwise": (nn.Conv2d(7, 5, 1, stride=2), (2, 7, 6, 5)),
}


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora", "pissa"])
@pytest.mark.parametrize("name", LAYERS)
def test_the_formula(name: str, kind: str) -> None:
    torch.manual_seed(0)
    layer, shape = LAYERS[name]
    reference = copy.deepcopy(layer).double()
    network, wrapper, scale, product = add(copy.deepcopy(layer), kind)
    weight = reference.weight
    if kind == "pissa":
        u, s, v = torch.linalg.svd(weight.flatten(1))
        weight = weight - ((u[:, :3] * s[:3]) @ v[:3]).reshape(weight.shape)
    weight = weight + scale * product
    if kind == "dora":
        length = weight.flatten(1).norm(dim=1)
        magnitude = wrapper.lora_magnitude_vector["default"].weight.flatten()
        weight = (weight.flatten(1) * (magnitude / length)[:, None]).reshape(weight.shape)
    with torch.no_grad():
        reference.weight.copy_(weight)
    rows = torch.randn(*shape, dtype=torch.float64)
    torch.testing.assert_close(network(rows), reference(rows), rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft 0.21 reads it
@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_equals_a_peft_model(kind: str) -> None:
    torch.manual_seed(0)
    network, run = bert()
    config = peft.LoraConfig(
        r=4,
        lora_alpha=16,
        target_modules=["query", "value"],
        use_dora=kind == "dora",
        use_rslora=kind == "rslora",
    )
    reference: Any = peft.get_peft_model(copy.deepcopy(network), config).eval()
    network, method = adapted(network, rank=4, kind=kind, targets=["*.query", "*.value"])
    parts = trained(network, method)
    theirs = {name.removeprefix("base_model.model."): p for name, p in reference.named_parameters()}
    assert set(parts) == {name for name, p in theirs.items() if p.requires_grad}
    for name, p in parts.items():
        p.data.copy_(theirs[name].data)
    for own in (parts, {name: theirs[name] for name in parts}):
        move(own)
    results = run(network), run(reference)
    torch.testing.assert_close(*results, rtol=0, atol=1e-6)
    for result in results:
        result.square().sum().backward()
    for name, p in parts.items():
        torch.testing.assert_close(p.grad, theirs[name].grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (6, 6)])
def test_the_principal_part_is_the_truncated_decomposition(shape: tuple[int, int]) -> None:
    weight = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for rank in (1, 4, 6):
        b, a = principal(weight, rank)
        u, s, v = torch.linalg.svd(weight, full_matrices=False)
        torch.testing.assert_close(b @ a, (u[:, :rank] * s[:rank]) @ v[:rank], rtol=0, atol=1e-12)
        torch.testing.assert_close(b.T @ b, a @ a.T, rtol=0, atol=1e-12)


def test_pissa_starts_as_peft_does() -> None:
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(9, 6))
    theirs: Any = copy.deepcopy(ours)
    config = peft.LoraConfig(r=3, lora_alpha=16, target_modules=["0"], init_lora_weights="pissa")
    peft.inject_adapter_in_model(config, theirs)
    adapted(ours, rank=3, kind="pissa")
    torch.testing.assert_close(ours[0].base_layer.weight, theirs[0].base_layer.weight, rtol=0, atol=1e-6)


def test_what_pissa_trained_goes_onto_a_fresh_build() -> None:
    """Only the trained tensors are kept; the rest of the weights is split anew, to 1e-6 of the outputs."""
    torch.manual_seed(0)
    fresh, run = vision("test_vit")
    network, method = adapted(copy.deepcopy(fresh), kind="pissa")
    parts = trained(network, method)
    move(parts)
    torch.manual_seed(1)
    again, _ = adapted(fresh, kind="pissa")
    again.load_state_dict({name: p.detach() for name, p in parts.items()}, strict=False)
    assert distance(run(again), run(network)) <= 1e-6


def test_pissa_needs_a_principal_part() -> None:
    network = nn.Sequential(nn.Linear(8, 8))
    nn.init.eye_(network[0].weight)
    with pytest.raises(ValueError, match="pissa: 0: its singular values 2 and 3 are alike"):
        LoRA(2, kind="pissa").apply(network)


def test_by_default_every_layer_of_the_blocks_that_is_large_enough() -> None:
    network, method = adapted(bert().network)
    layers = {name.partition(".lora_")[0] for name in trained(network, method)}
    inner = ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"]
    inner += ["intermediate.dense", "output.dense"]
    assert layers == {f"encoder.layer.{i}.{path}" for i in range(2) for path in inner}
    network = vision("test_efficientnet").network
    adapted(network, rank=16)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            assert not isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer)
    assert not any("lora" in name for name, _ in network.conv_stem.named_modules())


class Net(nn.Module):
    """Layers of every kind that cannot be adapted, and two that can."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(8, 8)
        self.twin = nn.Linear(8, 8)
        self.other = nn.Linear(8, 8)
        self.other.weight = self.twin.weight
        self.small = nn.Linear(8, 2)
        self.depthwise = nn.Conv1d(8, 8, 3, groups=8)
        self.mirrored = nn.Conv1d(8, 8, 3, padding=1, padding_mode="reflect")
        self.unused = nn.Linear(8, 8).requires_grad_(False)
        self.attention = nn.MultiheadAttention(8, 2)
        self.zero = nn.Linear(8, 8)
        nn.init.zeros_(self.zero.weight)


def test_what_cannot_be_adapted_is_left_out_by_default() -> None:
    for kind, expected in (("lora", {"wide", "zero"}), ("dora", {"wide"})):
        network, method = adapted(Net(), rank=4, kind=kind)
        assert {name.partition(".")[0] for name in trained(network, method)} == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": ["widde"]}, r"lora: no linear layer .* is called 'widde'; nearest: wide, \*\.wide"),
        ({"targets": ["wide", "attention"]}, r"is called 'attention'; nearest: attention\.\*"),
        (
            {"targets": ["attention.*"]},
            r"attention.out_proj .* never runs as a layer: MultiheadAttention reads",
        ),
        (
            {"targets": ["*"], "rank": 4},
            r"small \(by '\*'\) has a weight of 2 x 8, too small for rank=4: lower",
        ),
        (
            {"targets": ["wide"], "rank": 6, "kind": "adalora"},
            r"too small for rank=6 \(adalora starts at 9\)",
        ),
        ({"targets": ["twin", "other"]}, "twin .* shares its weight with another layer"),
        ({"targets": ["depthwise"]}, "depthwise .* is a grouped convolution"),
        ({"targets": ["mirrored"]}, "mirrored .* computes in a way of its own"),
        ({"targets": ["unused"]}, "unused .* is unused or was built fixed"),
        ({"targets": ["zero"], "kind": "dora"}, "dora: zero .* has rows of zeros"),
        ({"rank": 9}, "lora: Net has no linear layer .*: wide has a weight of 8 x 8, too small for rank=9"),
    ],
)
def test_mistakes_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoRA(**({"rank": 2} | settings)).apply(Net())


@pytest.mark.parametrize("settings", [{"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}, {"dropout": -0.1}])
def test_settings_out_of_range(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(settings))}={next(iter(settings.values()))}: it must"):
        LoRA(**settings)


def test_a_pattern_takes_what_fits_of_what_it_names() -> None:
    network, method = adapted(Net(), targets=["[wd]*e"], rank=4)
    assert {name.partition(".")[0] for name in trained(network, method)} == {"wide"}


def test_a_fixed_network_stays_as_it_is() -> None:
    network = bert().network.requires_grad_(False)
    plain = shapes(network)
    assert shapes(LoRA().apply(network)) == plain


def encoder_layers() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu")
    return nn.TransformerEncoder(layer, 2)


def test_torch_layers_do_not_bypass_what_was_added() -> None:
    """In evaluation without gradients they would take a fused path that reads the weights alone."""
    torch.manual_seed(0)
    network, method = adapted(encoder_layers())
    move(trained(network, method))
    tokens, mask = torch.randn(2, 5, 16), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    with_gradients = network(tokens, src_key_padding_mask=mask)
    with torch.no_grad():
        without = network(tokens, src_key_padding_mask=mask)
    torch.testing.assert_close(without[~mask], with_gradients[~mask], rtol=0, atol=1e-6)
    merged = method.merge(network)(tokens, src_key_padding_mask=mask)
    torch.testing.assert_close(merged[~mask], with_gradients[~mask], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_trained_tensor_gets_a_gradient(kind: str) -> None:
    """DDP stops over one that gets none; what a tower does not use was built fixed."""
    network, run = vision("test_vit")
    network.blocks[0].unused = nn.Linear(64, 64).requires_grad_(False)
    network, method = adapted(network, kind=kind)
    network.train()
    run(network).square().sum().backward()
    parts = trained(network, method)
    assert parts
    assert [name for name, p in parts.items() if p.grad is None] == []
    assert all(p.grad is None for name, p in network.named_parameters() if name not in parts)


def test_through_a_policy() -> None:
    """A checkpoint holds the matrices and what follows the encoder, and goes onto another build."""

    def build() -> tuple[nn.Module, Policy]:
        torch.manual_seed(0)
        tower = Tower(SignalEncoder(3, dim=16, num_layers=2, num_heads=2), dim=4)
        policy = Policy({"signal": LoRA(kind="pissa")})
        return policy.apply(nn.ModuleDict({"signal": tower})), policy

    model, policy = build()
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert policy.kept(model) == names
    assert all(".lora_" in name or name.startswith("signal.projection") for name in names)
    move({name: model.get_parameter(name) for name in names})
    again, _ = build()
    again.load_state_dict({name: model.state_dict()[name] for name in names}, strict=False)
    rows = torch.tensor([0, 1])
    inputs = Input(torch.randn(2, 9, 3), owner=rows, present=rows >= 0, length=torch.tensor([9, 5]))
    expected = model.eval().signal(inputs)
    torch.testing.assert_close(again.eval().signal(inputs), expected, rtol=0, atol=1e-6)
    assert policy.merge(model) == []
    torch.testing.assert_close(model.signal(inputs), expected, rtol=0, atol=1e-5)
    assert set(model.state_dict()) == {
        name.replace("base_layer.", "") for name in again.state_dict() if "lora" not in name
    }


class Reads(nn.Module):
    """A network that reads a layer's weight instead of calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.called = nn.Linear(8, 8)
        self.read = nn.Linear(8, 8)

    def forward(self, rows: Tensor) -> Tensor:
        return F.linear(self.called(rows), self.read.weight)


def test_a_layer_that_never_runs_is_found() -> None:
    network, method = adapted(Reads(), rank=2)
    for step in range(1, PATIENCE):
        network(torch.ones(2, 8)).sum().backward()
        method.after_step(network, step, 1000)
    with pytest.raises(ValueError, match=r"lora: 1 layers had no part in the loss .* \(read\)"):
        method.after_step(network, PATIENCE, 1000)
    fine, method = adapted(Reads(), rank=2, targets=["called"])
    fine(torch.ones(2, 8)).sum().backward()
    method.after_step(fine, PATIENCE, 1000)


@pytest.mark.parametrize("kind", KINDS)
def test_beside_frozen_weights_in_bfloat16(kind: str) -> None:
    torch.manual_seed(0)
    network, run = bert()
    before = run(network)
    network, method = adapted(network, kind=kind, rank=2, dropout=0.1)
    parts = trained(network, method)
    for path, p in network.named_parameters():
        if path not in parts and p.ndim > 1:
            p.data = p.data.bfloat16()
    network.train()
    with torch.autocast("cpu", torch.bfloat16):
        run(network).float().square().mean().backward()
    assert all(p.dtype == torch.float32 and p.grad.isfinite().all() for p in parts.values())
    network.eval()
    move(parts)
    with torch.autocast("cpu", torch.bfloat16):
        after = run(network)
        merged = method.merge(network)
        assert distance(run(merged), after) < 0.05
    assert {p.dtype for p in merged.parameters()} == {torch.float32}
    assert distance(run(merged), before) > 1e-3
