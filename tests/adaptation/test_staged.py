"""Which stage opens what."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from torch import nn

from mmlab.adaptation.policy import Policy
from mmlab.adaptation.staged import Staged
from mmlab.batch import Input, Modality
from mmlab.models.dual_encoder import DualEncoder, Tower
from mmlab.models.encoders.encoder import Encoded, Encoder


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.second = nn.Linear(2, 2)


class Deep(Encoder):
    """A stem, blocks, a norm."""

    modality = Modality.TEXT
    dim = 2

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.stem = nn.Linear(2, 2)
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))
        self.norm = nn.LayerNorm(2)

    def encode(self, inputs: Input) -> Encoded:
        raise AssertionError("no test runs it")


def opened(blocks: int, stages: int) -> tuple[DualEncoder, Policy]:
    model = DualEncoder(text=Tower(Deep(blocks), dim=2))
    policy = Policy({"*": Staged(stages, every=1)})
    policy.apply(model)
    return model, policy


def trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_the_head_first_then_groups_from_the_top() -> None:
    model, policy = opened(blocks=4, stages=2)
    start = trained(model)
    assert start == {name for name, _ in model.named_parameters() if ".projection." in name}
    policy.open(model, 1)
    new = {".".join(name.split(".")[2:-1]) for name in trained(model) - start}
    assert new == {"blocks.3.first", "blocks.3.second", "blocks.2.first", "blocks.2.second", "norm"}
    policy.open(model, 2)
    assert trained(model) == {name for name, _ in model.named_parameters()}
    assert policy.last_stage == 2


@given(st.integers(2, 24), st.integers(1, 8))
@settings(max_examples=30, deadline=None)
def test_groups_are_equal_and_in_order(blocks: int, stages: int) -> None:
    staged = Staged(stages, every=1)
    staged.apply(Tower(Deep(blocks), dim=2))
    opens = [staged.stage(f"encoder.blocks.{number}.first.weight") for number in range(blocks)]
    assert opens == sorted(opens, reverse=True)
    assert opens[-1] == staged.stage("encoder.norm.weight") == 1
    assert staged.stage("encoder.stem.weight") == stages
    assert staged.stage("projection.0.weight") == 0
    sizes = Counter(opens)
    assert max(sizes.values()) - min(sizes.values()) <= 1
    assert len(sizes) == min(blocks, stages)


def test_a_part_without_encoders_is_one_network() -> None:
    staged = Staged(2, every=1)
    network = nn.Sequential(nn.Linear(2, 2), *(Block() for _ in range(2)))
    staged.apply(network)
    assert [staged.stage(name) for name in ("0.weight", "1.first.weight", "2.first.weight")] == [2, 2, 1]


def test_when_a_stage_opens() -> None:
    assert [Staged(every=0.2).opening_step(stage, 1000) for stage in (1, 2, 3)] == [200, 400, 600]
    assert [Staged(every=50).opening_step(stage, 1000) for stage in (1, 2, 3)] == [50, 100, 150]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stages": 0}, "stages=0"),
        ({"every": 0}, "every=0"),
        ({"every": 1.5}, "every=1.5"),
        ({"stages": 5, "every": 0.2}, "lower every below 0.2"),
        ({"patience": 0}, "patience=0"),
    ],
)
def test_impossible_settings_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Staged(**arguments)


def test_a_config_names_it() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Policy, "policy")
    spec = {"class_path": "mmlab.adaptation.staged.Staged", "init_args": {"stages": 2, "every": 30}}
    found = parser.instantiate(parser.parse_object({"policy": {"towers": {"*": spec}}})).policy
    staged = found.towers["*"]
    assert isinstance(staged, Staged)
    assert (staged.stages, staged.every, staged.patience) == (2, 30, None)
