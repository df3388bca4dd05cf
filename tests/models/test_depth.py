"""How deep parameters lie, in the networks that encoders are made of and when something was added to them."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
from torch import nn
from transformers import DebertaV2Config, DebertaV2Model

from mmlab.batch import Modality
from mmlab.models.depth import depths, network_depths
from mmlab.models.dual_encoder import DualEncoder, Tower
from mmlab.models.encoders.audio import WhisperEncoder
from mmlab.models.encoders.encoder import Encoder
from mmlab.models.encoders.signal import SignalEncoder
from mmlab.models.encoders.text import TextEncoder

pytest_plugins = "tiny_parts"


def depth_of(found: dict[str, int], *, part: str) -> set[int]:
    """Depths of all parameters whose name holds a part."""
    chosen = {depth for name, depth in found.items() if part in name}
    assert chosen, f"nothing is called {part}"
    return chosen


def test_a_transformer_from_top_to_bottom(tiny_bert: Path) -> None:
    found = network_depths(TextEncoder(str(tiny_bert)))
    assert depth_of(found, part="layer.1.") == {0}
    assert depth_of(found, part="layer.0.") == {1}
    assert depth_of(found, part="embeddings.") == {2}


def test_stem_and_last_norm(tiny_whisper: Path) -> None:
    found = network_depths(WhisperEncoder(str(tiny_whisper)))
    for part, depth in {"conv1": 3, "conv2": 3, "layers.0.": 2, "layers.1.": 1, "layers.2.": 0}.items():
        assert depth_of(found, part=part) == {depth}
    assert depth_of(found, part="backbone.layer_norm") == {0}


def test_a_vision_transformer_has_its_own_parameters_at_the_stem() -> None:
    model = timm.create_model("test_vit", num_classes=0)
    found = network_depths(model)
    blocks = len(model.blocks)
    assert {found["cls_token"], found["pos_embed"]} == {blocks}
    assert depth_of(found, part=f"blocks.{blocks - 1}.") == {0}
    assert depth_of(found, part="patch_embed") == {blocks}
    assert found["norm.weight"] == 0


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_convolutions_grow_deeper_towards_the_input(name: str) -> None:
    model = timm.create_model(name, num_classes=0)
    found = list(network_depths(model).values())
    assert found == sorted(found, reverse=True)
    assert found[0] == max(found) > 1
    assert found[-1] == 0


def test_tables_lie_deepest_wherever_they_are_held() -> None:
    """DeBERTa holds its relative positions behind its layers, which all read them."""
    config = DebertaV2Config(
        vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        relative_attention=True, max_position_embeddings=16, pos_att_type=["p2c"],
    )  # fmt: skip
    found = network_depths(DebertaV2Model(config))
    assert depth_of(found, part="rel_embeddings") == depth_of(found, part="word_embeddings") == {2}


def test_what_is_added_inside_a_block_has_its_depth(tiny_bert: Path) -> None:
    encoder = TextEncoder(str(tiny_bert))
    before = network_depths(encoder)
    for layer in encoder.backbone.encoder.layer:
        query = layer.attention.self.query
        layer.attention.self.query = nn.ModuleDict({"base_layer": query, "lora_A": nn.Linear(32, 2)})
    found = network_depths(encoder)
    for number, depth in ((0, 1), (1, 0)):
        assert depth_of(found, part=f"layer.{number}.attention.self.query.lora_A") == {depth}
    same = {name.replace(".base_layer", ""): depth for name, depth in found.items() if "lora_A" not in name}
    assert same == before


def test_encoders_count_for_themselves_and_the_rest_is_on_top(tiny_bert: Path) -> None:
    model = DualEncoder(
        text=Tower(TextEncoder(str(tiny_bert)), dim=4),
        signal=Tower(SignalEncoder(2, dim=8, num_layers=3), dim=4),
    )
    found = depths(model)
    assert set(found) == {name for name, _ in model.named_parameters()}
    assert depth_of(found, part="projection") == {0}
    assert found["signal.encoder.convolution.weight"] == 3
    assert depth_of(found, part="text.encoder.backbone.embeddings") == {2}


class Table(Encoder):
    modality = Modality.TEXT
    dim = 2

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(3, 2)

    def encode(self, inputs: object) -> None:  # type: ignore[override]
        raise AssertionError("no test runs it")


def test_without_blocks_all_is_on_top() -> None:
    assert set(network_depths(Table()).values()) == {0}
