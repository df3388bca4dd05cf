from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from adapted_networks import bert, llama, vision, whisper
from torch import nn

from mmlab.adaptation.plain import Full
from mmlab.batch import Modality
from mmlab.models.blocks import find_blocks
from mmlab.models.dual_encoder import Tower
from mmlab.models.encoders.encoder import Encoder
from mmlab.models.encoders.signal import SignalEncoder


@torch.no_grad()
def pretrain(network: nn.Module) -> None:
    """Bring every parameter where no first value would put it, marked as loaded, as transformers does."""
    for module in network.modules():
        module._is_hf_initialized = True
    for parameter in network.parameters():
        parameter.fill_(7)
        parameter._is_hf_initialized = True


@pytest.mark.parametrize("subject", [bert, llama, whisper, lambda: vision("test_vit")])
def test_the_top_blocks_start_as_the_network_starts_them(subject: Any) -> None:
    """Means and deviations of each tensor are those of a network built anew."""
    torch.manual_seed(0)
    network, run = subject()
    fresh = copy.deepcopy(network)
    pretrain(network)
    blocks = find_blocks(network)
    Full(1).apply(network)
    top = f"{blocks[-1].path}."
    for name, parameter in network.named_parameters():
        if not name.startswith(top):
            assert bool((parameter == 7).all()), name
            continue
        expected = fresh.get_parameter(name)
        assert parameter.requires_grad
        if expected.unique().numel() == 1:
            assert parameter.equal(expected), name
        else:
            assert not parameter.equal(expected)
            assert float((parameter.std() / expected.std()).detach()) == pytest.approx(1, abs=0.15), name
    assert run(network).isfinite().all()


def test_convolutions_and_running_statistics_start_again() -> None:
    network, run = vision("test_resnet")
    pretrain(network)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.fill_(3)
    Full(2).apply(network)
    blocks = find_blocks(network)
    for place, (_, block) in enumerate(blocks):
        again = place >= len(blocks) - 2
        norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)]
        assert all(bool((norm.running_mean == (0 if again else 3)).all()) for norm in norms)
        assert bool((block.conv1.weight == 7).all()) is not again
    assert run(network).isfinite().all()


def test_every_encoder_of_a_part() -> None:
    tower = Tower(SignalEncoder(3, dim=16, num_layers=3, num_heads=2), dim=4)
    pretrain(tower)
    Full(2).apply(tower)
    blocks = find_blocks(tower.encoder)
    for place, (_, block) in enumerate(blocks):
        changed = [not bool((parameter == 7).all()) for parameter in block.parameters()]
        assert all(changed) if place >= len(blocks) - 2 else not any(changed)
    assert all(bool((parameter == 7).all()) for parameter in tower.projection.parameters())


def test_without_a_number_nothing_changes() -> None:
    network = bert().network
    before = copy.deepcopy(network.state_dict())
    assert Full().apply(network) is network
    assert all(value.equal(before[name]) for name, value in network.state_dict().items())


class Own(nn.Module):
    """A block with a parameter that nothing knows how to start."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.scale = nn.Parameter(torch.ones(2))


class Odd(Encoder):
    """Blocks of one's own."""

    modality = Modality.SIGNAL
    dim = 2

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Own(), Own()])

    def encode(self, inputs: Any) -> Any:
        raise AssertionError("no test runs it")


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="reinitialize=-1: it must be at least 0"):
        Full(-1)
    with pytest.raises(ValueError, match="reinitialize=3: BertModel has 2 blocks; choose at most that"):
        Full(3).apply(bert().network)
    with pytest.raises(ValueError, match=r"nothing gives blocks.1.scale a first value: give the module"):
        Full(1).apply(Odd())
