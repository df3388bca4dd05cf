from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_encoders import ENCODERS, adapt, encoder, rows
from torch import Tensor, nn

from mmlab.adaptation.adapters import Adapters
from mmlab.adaptation.graft import Graft
from mmlab.models.blocks import find_blocks
from mmlab.models.encoders.image import ImageEncoder
from mmlab.models.encoders.transformer_layer import TransformerLayer


def wide(kind: type[nn.Module], seed: int = 0, **settings: Any) -> Any:
    torch.manual_seed(seed)
    return kind(**settings).double().eval()


def bottleneck(adapter: Any, x: Tensor, scale: float) -> Tensor:
    down = F.gelu(x @ adapter.down.weight.flatten(1).T + adapter.down.bias)
    return scale * (down @ adapter.up.weight.flatten(1).T + adapter.up.bias)


@pytest.mark.parametrize("placement", ["houlsby", "parallel"])
@pytest.mark.parametrize("name", ENCODERS)
def test_the_function_is_unchanged_at_the_start(name: str, placement: Any) -> None:
    network = encoder(name)
    before = network(rows(name)).tokens
    Adapters(4, placement=placement).apply(network)
    assert network(rows(name)).tokens.equal(before)


class Layers(nn.Module):
    """Two layers by hand, with the adapters of both placements."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TransformerLayer(8, num_heads=2, hidden=16) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, torch.ones(len(x), 1, 1, x.shape[1], dtype=torch.bool))
        return x


@pytest.mark.parametrize(("placement", "scale"), [("houlsby", 1.0), ("houlsby", 0.5), ("parallel", 4.0)])
def test_a_transformer_layer_by_the_formula(placement: Any, scale: float) -> None:
    network = wide(Layers)
    trained = adapt(network, Adapters(3, placement=placement, scale=scale))
    assert len(trained) == 2 * 4 * (2 if placement == "houlsby" else 1)
    expected = x = torch.randn(2, 5, 8, dtype=torch.float64)
    for layer in network.layers:
        own = TransformerLayer(8, num_heads=2, hidden=16).double()
        own.load_state_dict({key: value for key, value in layer.state_dict().items() if "adapter" not in key})
        read = own.attention_norm(expected)
        attended = own._attend(read, read, torch.ones(2, 1, 1, 5, dtype=torch.bool))
        if placement == "houlsby":
            attended = attended + bottleneck(layer.out.adapter, attended, scale)
        expected = expected + attended
        inside = own.feedforward_norm(expected)
        forward = own.narrow(F.gelu(own.widen(inside)))
        if placement == "houlsby":
            forward = forward + bottleneck(layer.narrow.adapter, forward, scale)
        else:
            forward = forward + bottleneck(layer.widen.adapter, inside, scale)
        expected = expected + forward
    torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-12)


def last_map(tokens: Tensor) -> Tensor:
    return tokens.movedim(1, -1)


def test_convolutions_get_convolutions() -> None:
    torch.manual_seed(0)
    network = ImageEncoder("tf_efficientnet_lite0", pretrained=False).eval()
    trained = adapt(network, Adapters(4))
    path = "backbone.blocks.2.1.conv_pwl"
    parts = [name.rpartition(".adapter.")[2] for name in trained if name.startswith(f"{path}.")]
    assert parts == ["down.weight", "down.bias", "up.weight", "up.bias"]
    layer = network.get_submodule(path).double()
    assert layer.adapter.down.weight.shape == (4, 40, 1, 1)
    x = torch.randn(1, 240, 8, 8, dtype=torch.float64)
    without = last_map(F.conv2d(x, layer.weight))
    expected = without + bottleneck(layer.adapter, without, 1.0)
    torch.testing.assert_close(last_map(layer(x)), expected, rtol=0, atol=1e-12)


def test_beside_a_convolution_only_where_the_map_keeps_its_size() -> None:
    network = encoder("efficientnet")
    trained = adapt(network, Adapters(4, placement="parallel"))
    places = {name.partition(".adapter.")[0].removeprefix("backbone.blocks.") for name in trained}
    assert places
    for name, block in network.backbone.blocks.named_modules():
        strided = any(isinstance(m, nn.Conv2d) and m.stride != (1, 1) for m in block.modules())
        if name in places:
            assert strided or not hasattr(block, "conv_pw"), (
                "an adapter behind a block that could have one beside"
            )
        if f"{name}.conv_pw" in places:
            assert not strided


def test_units_of_a_resnet_get_it_behind_them() -> None:
    network = encoder("resnet", torch.float64)
    block = find_blocks(network)[-1].module
    x = torch.randn(2, block.conv1.in_channels, 6, 6, dtype=torch.float64)
    before = block(x)
    trained = adapt(network, Adapters(4, scale=3.0))
    assert len(trained) == 3 * 4
    expected = last_map(before) + bottleneck(block.adapter, last_map(before), 3.0)
    torch.testing.assert_close(last_map(block(x)), expected, rtol=0, atol=1e-12)


def test_a_part_of_an_encoder() -> None:
    network = encoder("bert")
    part = network.backbone.encoder.layer[1]
    before = network(rows("bert")).tokens
    trained = adapt(part, Adapters(4))
    layers = {name.partition(".adapter.")[0] for name in trained}
    assert layers == {"attention.output.dense", "output.dense"}
    assert not torch.allclose(network(rows("bert")).tokens, before)


def test_layers_that_are_never_run_get_none() -> None:
    network = encoder("whisper")
    network.spare = nn.ModuleList(TransformerLayer(8, num_heads=2, hidden=16) for _ in range(2))
    trained = adapt(network, Adapters(4))
    assert trained
    assert not any(name.startswith("spare") for name in trained)


class Torch(nn.Module):
    """Layers of torch, which have a fast path in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu")
        self.stack = nn.TransformerEncoder(layer, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.stack(x)


@pytest.mark.parametrize("placement", ["houlsby", "parallel"])
def test_layers_of_torch_leave_their_fast_path(placement: Any) -> None:
    network = wide(Torch).float()
    trained = adapt(network, Adapters(4, placement=placement))
    grafted = [name for name, module in network.named_modules() if isinstance(module, Graft)]
    assert len(grafted) == 4
    assert len(trained) == (16 if placement == "houlsby" else 8)
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        quick = network(x)
    torch.testing.assert_close(quick, network(x))
    network(x).square().mean().backward()
    assert all(p.grad is not None for p in trained.values())


def test_what_cannot_be_adapted_names_the_remedy() -> None:
    with pytest.raises(ValueError, match="size=0, but an adapter needs at least 1 feature"):
        Adapters(0)
    with pytest.raises(ValueError, match=r"Sequential has no attention, feed-forward or block.*use lora"):
        Adapters(4).apply(nn.Sequential(nn.Linear(4, 4)))
    with pytest.raises(ValueError, match="adapt the whole encoder"):
        Adapters(4).apply(encoder("resnet").backbone.layer3[0])


def test_adapters_do_not_merge() -> None:
    assert not Adapters().merges
