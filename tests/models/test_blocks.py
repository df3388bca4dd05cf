from __future__ import annotations

from itertools import combinations

import pytest
import timm
import torch
from torch import nn
from transformers import BertConfig, BertModel, T5Config, T5Model

from mmlab.models.blocks import find_blocks
from mmlab.models.encoders.image import ImageEncoder
from mmlab.models.encoders.signal import SignalEncoder

BERT = BertConfig(
    vocab_size=50, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64
)
T5 = T5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)


def paths(network: nn.Module) -> list[str]:
    return [block.path for block in find_blocks(network)]


class Unit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)


class Stage(nn.Module):
    def __init__(self, units: int) -> None:
        super().__init__()
        self.units = nn.Sequential(*(Unit() for _ in range(units)))


def test_layers_of_transformers() -> None:
    assert paths(BertModel(BERT)) == [f"encoder.layer.{number}" for number in range(3)]
    assert paths(T5Model(T5)) == ["encoder.block.0", "encoder.block.1", "decoder.block.0", "decoder.block.1"]
    assert paths(SignalEncoder(3, dim=8, num_layers=2)) == ["layers.0", "layers.1"]


@pytest.mark.parametrize(
    ("name", "first", "last", "count"),
    [
        ("test_vit", "blocks.0", "blocks.5", 6),
        ("resnet50", "layer1.0", "layer4.2", 16),
        ("swin_tiny_patch4_window7_224", "layers.0.blocks.0", "layers.3.blocks.1", 12),
        ("convnext_atto", "stages.0.blocks.0", "stages.3.blocks.1", 12),
        ("maxvit_tiny_tf_224", "stages.0.blocks.0", "stages.3.blocks.1", 11),
    ],
)
def test_units_of_the_stages_of_timm(name: str, first: str, last: str, count: int) -> None:
    with torch.device("meta"):
        found = paths(timm.create_model(name))
    assert (found[0], found[-1], len(found)) == (first, last, count)


def test_paths_start_at_what_was_searched_and_lead_to_the_module() -> None:
    network = ImageEncoder("test_resnet", pretrained=False)
    found = find_blocks(network)
    assert [block.path for block in found] == [f"backbone.{path}" for path in paths(network.backbone)]
    assert all(network.get_submodule(block.path) is block.module for block in found)
    for one, other in combinations(found, 2):
        assert not other.path.startswith(f"{one.path}.")
        assert one.module is not other.module


def test_stages_are_opened_and_blocks_are_not() -> None:
    assert paths(nn.ModuleList([Stage(2), Stage(1)])) == ["0.units.0", "0.units.1", "1.units.0"]
    assert paths(nn.Sequential(Unit(), Unit())) == ["0", "1"]
    inside = nn.ModuleList([nn.Sequential(Unit(), Unit()), nn.Sequential(Unit())])
    assert paths(inside) == ["0.0", "0.1", "1.0"]


def test_what_does_not_repeat_is_no_block() -> None:
    assert paths(nn.Sequential(Unit(), nn.Linear(2, 2), nn.Linear(2, 2))) == []
    assert paths(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))) == []
    assert paths(Unit()) == []
    with_list_inside = [nn.TransformerEncoderLayer(4, 1, 4) for _ in range(2)]
    assert paths(nn.Sequential(*with_list_inside)) == ["0", "1"]
