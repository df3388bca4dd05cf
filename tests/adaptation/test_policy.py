from __future__ import annotations

from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import nn

from mmlab.adaptation.policy import Full, Method, MethodName, Policy, Trained
from mmlab.batch import Input, Modality
from mmlab.models.dual_encoder import DualEncoder, Tower
from mmlab.models.encoders.encoder import Encoded, Encoder


class Small(Encoder):
    """Two layers with dropout and batch normalisation, and one table that was built fixed."""

    def __init__(self, modality: Modality) -> None:
        super().__init__()
        self.modality = modality
        self.dim = 4
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.norm = nn.BatchNorm1d(4)
        self.dropout = nn.Dropout(0.5)
        self.positions = nn.Parameter(torch.zeros(3), requires_grad=False)

    def encode(self, inputs: Input) -> Encoded:
        raise AssertionError("no test runs it")


class Model(DualEncoder):
    """Two towers and a temperature."""

    def __init__(self, hidden: int | None = None) -> None:
        super().__init__(
            image=Tower(Small(Modality.IMAGE), dim=2, hidden=hidden, dropout=0.1),
            text=Tower(Small(Modality.TEXT), dim=2, hidden=hidden),
        )
        self.temperature = nn.Parameter(torch.zeros(1))


def trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def within(model: nn.Module, *paths: str) -> set[str]:
    """Names below the paths, but for what was built fixed."""
    names = {name for name, _ in model.named_parameters() if not name.endswith("positions")}
    return {name for name in names if name.startswith(paths)}


def test_without_a_word_everything_is_trained_but_what_was_built_fixed() -> None:
    model = Model()
    Policy({}).apply(model)
    assert trained(model) == within(model, "")
    model = Model()
    Policy("full").apply(model)
    assert trained(model) == within(model, "")


def test_frozen_keeps_the_encoder_and_trains_what_follows() -> None:
    model = Model(hidden=3)
    policy = Policy({"image": "frozen", "text": "full"})
    assert policy.apply(model) is model
    expected = within(model, "image.projection", "text", "temperature")
    assert trained(model) == expected
    assert {name for name, _ in model.named_parameters() if policy.trainable(name)} == expected


def test_probe_trains_the_last_linear_layer() -> None:
    model = Model(hidden=3)
    Policy({"image": "probe", "text": "frozen"}).apply(model)
    assert trained(model) == within(model, "image.projection.4", "text.projection", "temperature")


def test_one_name_holds_for_all_towers() -> None:
    model = Model()
    Policy("frozen").apply(model)
    assert trained(model) == within(model, "image.projection", "text.projection", "temperature")


def test_a_star_leaves_out_what_another_key_touches() -> None:
    model = Model()
    Policy({"*": "frozen", "text": "full"}).apply(model)
    assert trained(model) == within(model, "image.projection", "text", "temperature")


def test_patterns_name_layers() -> None:
    model = Model()
    Policy({"*.encoder.layers.[0-0]": "frozen", "text.projection": "frozen"}).apply(model)
    fixed = within(model, "image.encoder.layers.0", "text.encoder.layers.0", "text.projection")
    assert trained(model) == within(model, "") - fixed


def test_a_pattern_that_matches_a_part_and_what_is_below_it_takes_the_part() -> None:
    model = Model()
    policy = Policy({"image*": "frozen"})
    policy.apply(model)
    assert trained(model) == within(model, "image.projection", "text", "temperature")
    assert [row.part for row in policy.describe(model)] == ["image", "(rest)"]


@pytest.mark.parametrize(
    ("towers", "message"),
    [
        ({"imag": "frozen"}, "no part is called 'imag'; nearest: image"),
        ({"image.encodr": "frozen"}, "no part is called 'image.encodr'; nearest: image.encoder"),
        ({"zzz": "full"}, "no part is called 'zzz'; nearest: image, text"),
        ({"image": "full", "image.encoder": "frozen"}, "'image.encoder' and 'image' both name image.encoder"),
        ({"image.encoder": "full", "image": "frozen"}, "'image' and 'image.encoder' both name image.encoder"),
        (
            {"text.*": "full", "text.encoder": "frozen"},
            "'text.encoder' and 'text.\\*' both name text.encoder",
        ),
        ({"image.encoder": "probe"}, "probe: Small has no linear layer after its encoders"),
    ],
)
def test_mistakes_are_named(towers: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Policy(towers).apply(Model())


def test_nothing_left_to_train() -> None:
    model = Model()
    del model.temperature
    parts = {f"{tower}.{part}": "frozen" for tower in ("image", "text") for part in ("encoder", "projection")}
    with pytest.raises(ValueError, match="nothing is left to train"):
        Policy(parts).apply(model)


def test_a_model_without_encoders() -> None:
    Policy("full").apply(nn.Sequential(nn.Linear(1, 1)))
    with pytest.raises(ValueError, match="no child of the model holds an encoder"):
        Policy("frozen").apply(nn.Sequential(nn.Linear(1, 1)))


def test_what_is_frozen_stays_in_evaluation_mode() -> None:
    model = Model()
    policy = Policy({"image": "frozen", "text.encoder.layers.0": "frozen"})
    policy.apply(model)
    policy.set_mode(model.train())
    assert not any(module.training for module in model.image.encoder.modules())
    assert model.image.training
    assert model.image.projection[1].training, "dropout before a trained layer"
    assert model.text.encoder.dropout.training
    assert not model.text.encoder.layers[0].training
    policy.set_mode(model.eval())
    assert not any(module.training for module in model.modules())


def test_the_table_counts_every_parameter_once() -> None:
    model = Model()
    policy = Policy({"image": "frozen", "text": "full"})
    policy.apply(model)
    encoder, projection = 2 * (4 * 4 + 4) + 2 * 4, 2 * 4 + 4 * 2 + 2
    assert policy.describe(model) == [
        Trained("image", "frozen", projection, encoder + projection + 3),
        Trained("text", "full", encoder + projection, encoder + projection + 3),
        Trained("(rest)", "full", 1, 1),
    ]


class SideLayer(Method):
    """What a later method looks like: it replaces the part, and trains what it added."""

    def apply(self, part: nn.Module) -> nn.Module:
        return nn.ModuleDict({"base": part, "side": nn.Linear(2, 2)})

    def trainable(self, name: str, parameter: nn.Parameter) -> bool:
        return name.startswith("side.")


def test_a_method_may_replace_its_part() -> None:
    model = Model()
    method = SideLayer()
    Policy({"*.encoder.layers.1": method, "text.projection": Full()}).apply(model)
    sides = within(model, "image.encoder.layers.1.side", "text.encoder.layers.1.side")
    assert len(sides) == 4
    fixed = within(model, "image.encoder.layers.1.base", "text.encoder.layers.1.base")
    assert trained(model) == within(model, "") - fixed


def choose(adaptation: Policy | MethodName = "full") -> Policy:
    """What a task's constructor does with it."""
    return adaptation if isinstance(adaptation, Policy) else Policy(adaptation)


@pytest.mark.parametrize(
    ("value", "methods"),
    [
        ("frozen", {"*": "Frozen"}),
        ({"class_path": "mmlab.adaptation.policy.Policy", "init_args": {"towers": {"image": "frozen"}}},
         {"image": "Frozen"}),
        ({"class_path": "mmlab.adaptation.policy.Policy",
          "init_args": {"towers": {"image": {"class_path": "mmlab.adaptation.policy.Probe"}, "*": "full"}}},
         {"image": "Probe", "*": "Full"}),
    ],
)  # fmt: skip
def test_a_config_names_it(value: Any, methods: dict[str, str]) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_function_arguments(choose, "task")
    config = parser.instantiate(parser.parse_object({"task": {"adaptation": value}}))
    policy = choose(**vars(config.task))
    assert {key: type(method).__name__ for key, method in policy.towers.items()} == methods
