"""What holds for every method that adds to what a network computes: adapters, prefix, prompts."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small_encoders import ENCODERS, SEQUENCES, TOKENS, adapt, alone, encoder, rows
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint

from mmlab.adaptation.adapters import Adapters
from mmlab.adaptation.graft import Graft, graft
from mmlab.adaptation.method import EncoderMethod
from mmlab.adaptation.prefix import Prefix
from mmlab.adaptation.prompts import Prompts
from mmlab.models.blocks import find_blocks

METHODS: dict[str, EncoderMethod] = {
    "houlsby": Adapters(4),
    "parallel": Adapters(4, placement="parallel", scale=2.0),
    "prefix": Prefix(3),
    "prompts": Prompts(3),
}
PAIRS = [
    (name, method)
    for name in ENCODERS
    for method in METHODS
    if name in TOKENS or method in ("houlsby", "parallel")
]

SOME = [pair for pair in PAIRS if pair[0] in ("llama", "signal", "resnet")]


def make(name: str, method: str, dtype: torch.dtype = torch.float32) -> tuple[Any, dict[str, nn.Parameter]]:
    torch.manual_seed(0)
    network = encoder(name, dtype)
    return network, adapt(network, copy.deepcopy(METHODS[method]))


def gradients(trained: dict[str, nn.Parameter], output: Tensor) -> dict[str, Tensor]:
    found = torch.autograd.grad(output.float().square().mean(), list(trained.values()))
    return dict(zip(trained, found, strict=True))


@pytest.mark.parametrize(("name", "method"), PAIRS)
def test_every_trained_parameter_gets_a_gradient_and_nothing_else(name: str, method: str) -> None:
    network, trained = make(name, method)
    frozen = {key: value.clone() for key, value in network.named_parameters() if key not in trained}
    network.train()
    network(rows(name)).tokens.square().mean().backward()
    assert trained
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained.values())
    assert any(p.grad.abs().sum() > 0 for p in trained.values())
    for key, value in network.named_parameters():
        if key not in trained:
            assert value.grad is None
            assert torch.equal(value, frozen[key])


@pytest.mark.parametrize(("name", "method"), SOME)
def test_names_of_the_fixed_weights_stay(name: str, method: str) -> None:
    before = encoder(name).state_dict()
    network, trained = make(name, method)
    after = network.state_dict()
    assert set(after) == set(before) | set(trained)
    assert all(torch.equal(after[key], value) for key, value in before.items())
    plain = [type(module) for module in encoder(name).modules()]
    added = {module for module in network.modules() if isinstance(module, Graft)}
    assert all(any(isinstance(module, kind) for kind in plain) for module in added)


@pytest.mark.parametrize(("name", "method"), SOME)
def test_evaluation_without_gradients_and_copies_give_the_same(name: str, method: str) -> None:
    network, trained = make(name, method)
    wanted = network(rows(name)).tokens
    with torch.no_grad():
        torch.testing.assert_close(network(rows(name)).tokens, wanted, rtol=0, atol=1e-6)
    for copied in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        torch.testing.assert_close(copied(rows(name)).tokens, wanted)
        parameters = dict(copied.named_parameters())
        assert not {id(p) for p in parameters.values()} & {id(p) for p in network.parameters()}
        with torch.no_grad():
            for key in trained:
                parameters[key].mul_(2)
        assert not torch.allclose(copied(rows(name)).tokens, wanted, atol=1e-6)
    torch.testing.assert_close(network(rows(name)).tokens, wanted)


@pytest.mark.parametrize(("name", "method"), [pair for pair in PAIRS if pair[0] in TOKENS])
def test_a_row_gives_the_same_alone_and_in_a_batch(name: str, method: str) -> None:
    network, _ = make(name, method)
    inputs = rows(name)
    with torch.no_grad():
        tokens, mask = network(inputs)
        for row in range(3):
            own = network(alone(inputs, row)).tokens[0]
            torch.testing.assert_close(tokens[row][mask[row]], own, rtol=1e-4, atol=1e-4)
    assert (name in SEQUENCES) == (not mask.all())


@pytest.mark.parametrize(("name", "method"), SOME)
def test_what_is_trained_is_saved_and_loaded_alone(name: str, method: str) -> None:
    network, trained = make(name, method)
    wanted = network(rows(name)).tokens
    file = io.BytesIO()
    torch.save({key: network.state_dict()[key] for key in trained}, file)
    file.seek(0)
    other = encoder(name)
    METHODS[method].apply(other)
    assert not torch.allclose(other(rows(name)).tokens, wanted, atol=1e-6)
    found = other.load_state_dict(torch.load(file, weights_only=True), strict=False)
    assert not found.unexpected_keys
    torch.testing.assert_close(other(rows(name)).tokens, wanted)


@pytest.mark.parametrize(("name", "method"), PAIRS)
def test_low_precision_of_what_is_fixed_under_autocast(name: str, method: str) -> None:
    network, trained = make(name, method)
    wanted = network(rows(name)).tokens
    norms = {id(p) for m in network.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
    for key, parameter in network.named_parameters():
        if key not in trained and id(parameter) not in norms:
            parameter.data = parameter.data.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        tokens = network(rows(name)).tokens
    found = gradients(trained, tokens)
    assert all(p.dtype == torch.float32 and found[key].isfinite().all() for key, p in trained.items())
    error = (tokens.float() - wanted).norm() / wanted.norm()
    assert error < 0.05


@pytest.mark.parametrize(("name", "method"), [pair for pair in SOME if pair[0] == "llama"])
def test_half_a_network_without_autocast(name: str, method: str) -> None:
    network = encoder(name, torch.bfloat16)
    trained = adapt(network, copy.deepcopy(METHODS[method]))
    assert all(p.dtype == torch.float32 for p in trained.values())
    assert network(rows(name)).tokens.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "method", "reentrant"),
    [(*pair, False) for pair in SOME] + [("signal", method, True) for method in METHODS],
)
def test_blocks_can_be_recomputed(name: str, method: str, reentrant: bool) -> None:
    network, trained = make(name, method)
    wanted = network(rows(name)).tokens
    expected = gradients(trained, wanted)
    for _, block in find_blocks(network):
        forward = block.forward
        block.forward = lambda tokens, *args, forward=forward, **kwargs: checkpoint(
            lambda tokens: forward(tokens, *args, **kwargs), tokens, use_reentrant=reentrant
        )
    inputs = rows(name)
    if reentrant:
        # The older kind recomputes only what depends on an input with a gradient, so let all do.
        for parameter in network.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
    network.zero_grad()
    output = network(inputs).tokens
    torch.testing.assert_close(output, wanted)
    output.square().mean().backward()
    for key, parameter in trained.items():
        torch.testing.assert_close(parameter.grad, expected[key], rtol=1e-4, atol=1e-6)


def compile_all() -> None:
    """Compile blocks without graph breaks, for any size, and compare; without the tests' checks of shapes."""
    for name, method in SOME:
        network, trained = make(name, method)
        whole, single = network(rows(name)).tokens, network(alone(rows(name), 1)).tokens
        expected = gradients(trained, whole)
        torch.compiler.reset()
        for _, block in find_blocks(network):
            block.compile(backend="eager", fullgraph=True, dynamic=name != "resnet")
        tokens = network(rows(name)).tokens
        torch.testing.assert_close(tokens, whole, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(network(alone(rows(name), 1)).tokens, single, rtol=1e-4, atol=1e-5)
        for key, gradient in gradients(trained, tokens).items():
            torch.testing.assert_close(gradient, expected[key], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_blocks_compile_in_one_graph() -> None:
    code = "import test_grafts; test_grafts.compile_all()"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=Path(__file__).parent, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def sharded(name: str, method: str) -> list[tuple[float, float]]:
    """Greatest differences of tokens and gradients between the network in shards and whole."""
    network, trained = make(name, method)
    wanted = network(rows(name)).tokens
    expected = gradients(trained, wanted)
    for _, block in find_blocks(network):
        fully_shard(block)
    fully_shard(network)
    tokens = network(rows(name)).tokens
    tokens.square().mean().backward()
    distances = [(0.0, float((tokens - wanted).abs().max()))]
    for key, parameter in network.named_parameters():
        if key in trained:
            whole = parameter.grad.full_tensor()
            distances.append((float(expected[key].abs().max()), float((whole - expected[key]).abs().max())))
    return distances


@pytest.mark.parametrize(("name", "method"), SOME)
def test_in_shards_of_two_ranks(ranks: Any, name: str, method: str) -> None:
    for distances in ranks(sharded, name, method):
        assert all(difference <= 1e-5 + 1e-4 * size for size, difference in distances)


class Twice(Graft):
    def forward(self, x: Tensor) -> Any:
        return self.factor * super().forward(x)


def test_a_grafted_module_is_what_it_was_to_others() -> None:
    layer, plain = nn.Linear(2, 3), nn.Linear(2, 3)
    weight, before = layer.weight, layer(torch.ones(1, 2))
    graft(layer, Twice, factor=2)
    graft(plain, Twice, factor=2)
    assert isinstance(layer, nn.Linear)
    assert type(layer).__name__ == "Linear"
    assert type(layer) is type(plain), "modules of one class stay so"
    assert layer.weight is weight
    assert layer.out_features == 3
    assert layer(torch.ones(1, 2)).equal(2 * before)
    with pytest.raises(AssertionError, match="has an attribute weight of its own"):
        graft(plain, Twice, weight=1)
