from __future__ import annotations

import pytest
import torch
from adapted_networks import SUBJECTS, bert, llama, vision
from torch import nn

from mmlab.adaptation.method import EncoderMethod
from mmlab.adaptation.partial import BitFit, NormTuning, is_norm


def trained(method: EncoderMethod, network: nn.Module) -> set[str]:
    network = method.apply(network)
    return {name for name, p in network.named_parameters() if method.trainable(name, p)}


def test_bitfit_trains_every_bias_and_nothing_else() -> None:
    network = bert().network
    expected = {name for name, _ in network.named_parameters() if name.endswith("bias")}
    assert trained(BitFit(), network) == expected
    assert len(expected) == 1 + 2 * 8


def test_biases_of_other_names_and_tables_that_are_none() -> None:
    network = nn.Module()
    network.q_bias = nn.Parameter(torch.zeros(4))
    network.relative_attention_bias = nn.Embedding(3, 4)
    network.position_bias = nn.Parameter(torch.zeros(3, 4))
    network.attention = nn.MultiheadAttention(4, 2)
    assert trained(BitFit(), network) == {"q_bias", "attention.in_proj_bias", "attention.out_proj.bias"}


def test_a_network_without_biases() -> None:
    with pytest.raises(ValueError, match="bitfit: LlamaModel has no biases: use layernorm"):
        BitFit().apply(llama().network)


@pytest.mark.parametrize("name", SUBJECTS)
def test_norm_tuning_finds_the_norms_by_structure(name: str) -> None:
    network = SUBJECTS[name]().network
    found = trained(NormTuning(), network)
    owners = {type(network.get_submodule(path.rpartition(".")[0])).__name__ for path in found}
    assert found
    assert all("Norm" in owner for owner in owners)
    missed = {
        f"{path}.{name}"
        for path, module in network.named_modules()
        if "Norm" in type(module).__name__
        for name, _ in module.named_parameters(recurse=False)
    }
    assert found == missed


def test_what_looks_like_a_norm_and_is_none() -> None:
    assert not is_norm(nn.PReLU(4))
    assert not is_norm(nn.Linear(4, 1))
    assert not is_norm(nn.Embedding(2, 4))
    assert is_norm(nn.BatchNorm1d(4))
    assert is_norm(nn.LayerNorm((2, 4)))


def test_a_network_without_norms() -> None:
    with pytest.raises(ValueError, match="layernorm: Sequential has no norms with a scale: use bitfit"):
        NormTuning().apply(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4, elementwise_affine=False)))


@pytest.mark.parametrize("method", [BitFit(), NormTuning()])
def test_a_fixed_network_is_no_mistake(method: EncoderMethod) -> None:
    assert not trained(method, nn.Sequential(nn.Linear(4, 4, bias=False)).requires_grad_(False))


@pytest.mark.parametrize("method", [BitFit(), NormTuning()])
def test_every_trained_parameter_gets_a_gradient(method: EncoderMethod) -> None:
    network, run = vision("test_efficientnet")
    names = trained(method, network)
    run(network).sum().backward()
    assert [name for name in names if network.get_parameter(name).grad is None] == []
