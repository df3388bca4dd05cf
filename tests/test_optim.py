"""What is decayed, the learning rate over time, and both built from a config."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from functools import partial

import jsonargparse
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mmlab.objectives.contrastive import InfoNCE
from mmlab.optim import Optimization, WarmupCosine, parameter_groups, warmup_cosine


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.linear = nn.Linear(4, 3)
        self.norm = nn.LayerNorm(3)
        self.matrix_bias = nn.Parameter(torch.zeros(3, 3))
        self.objective = InfoNCE()


def names(model: nn.Module, group: dict[str, list[nn.Parameter]]) -> list[str]:
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    return [name_of[id(parameter)] for parameter in group["params"]]


def test_matrices_are_decayed_and_nothing_else() -> None:
    model = Small()
    decay, no_decay = parameter_groups(model.named_parameters())
    assert names(model, decay) == ["embed.weight", "linear.weight"]
    assert names(model, no_decay) == [
        "matrix_bias", "linear.bias", "norm.weight", "norm.bias", "objective.log_scale",
    ]  # fmt: skip
    optimizer = torch.optim.AdamW([decay, no_decay], lr=0.1, weight_decay=0.3)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]


def test_what_is_opened_later_is_there_from_the_start() -> None:
    model = Small()
    model.embed.requires_grad_(False)
    decay, _ = parameter_groups(model.named_parameters())
    assert "embed.weight" in names(model, decay)


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(ValueError, match="no parameter is trained"):
        parameter_groups([])


DEPTHS = {
    "matrix_bias": 0, "embed.weight": 2, "linear.weight": 1, "linear.bias": 1, "norm.weight": 0,
    "norm.bias": 0, "objective.log_scale": 0,
}  # fmt: skip


def layered(
    optimizer: Callable[..., torch.optim.Optimizer], factor: float
) -> tuple[Small, torch.optim.Optimizer]:
    model = Small()
    return model, Optimization(optimizer, layer_decay=factor).build_optimizer(
        model.named_parameters(), depths=DEPTHS
    )


@pytest.mark.parametrize(
    "optimizer",
    [
        partial(torch.optim.AdamW, lr=0.1, weight_decay=0.3),
        partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.3),
        partial(torch.optim.Adafactor, lr=0.1, weight_decay=0.3),
        partial(torch.optim.NAdam, lr=0.1, weight_decay=0.3),
    ],
)
def test_rates_shrink_with_depth(optimizer: Callable[..., torch.optim.Optimizer]) -> None:
    model, built = layered(optimizer, 0.5)
    rates, decays = {}, {}
    for group in built.param_groups:
        for name in names(model, group):
            rates[name], decays[name] = group["lr"], group["weight_decay"]
    assert rates == {name: pytest.approx(0.1 * 0.5**depth) for name, depth in DEPTHS.items()}
    assert {name for name, decay in decays.items() if decay > 0} == {"embed.weight", "linear.weight"}


def test_the_schedule_keeps_the_proportions() -> None:
    _, built = layered(partial(torch.optim.SGD, lr=0.1), 0.5)
    schedule = WarmupCosine(warmup=3)(built, 10)
    for step in range(10):
        share = warmup_cosine(step, warmup_steps=3, total_steps=10, min_ratio=0.0)
        for group in built.param_groups:
            assert group["lr"] == pytest.approx(0.1 * share * 0.5 ** group["depth"])
        built.step()
        schedule.step()


def test_without_layer_decay_there_are_two_groups_whatever_the_depths() -> None:
    model = Small()
    optimization = Optimization(partial(torch.optim.AdamW, lr=0.1))
    plain, deep = (
        optimization.build_optimizer(model.named_parameters(), depths=depths) for depths in (None, DEPTHS)
    )
    assert plain.state_dict() == deep.state_dict()
    assert [group["name"] for group in deep.param_groups] == ["decay", "no_decay"]


@pytest.mark.parametrize("depths", [None, DEPTHS])
def test_parts_have_rates_of_their_own(depths: dict[str, int] | None) -> None:
    model = Small()
    rates = {"norm": 0.5, "linear": 0.1, "other": 9.0, "objective": 2.0}
    decay = 1.0 if depths is None else 0.5
    optimization = Optimization(partial(torch.optim.AdamW, lr=0.1), layer_decay=decay, rates=rates)
    with pytest.raises(ValueError, match=r"the model has no part 'other'.*rates {}"):
        optimization.check_parts(name for name, _ in model.named_parameters())
    rates.pop("other")
    optimization.check_parts(name for name, _ in model.named_parameters())
    built = optimization.build_optimizer(model.named_parameters(), depths=depths)
    factor = {"norm.weight": 0.5, "norm.bias": 0.5, "linear.weight": 0.1, "linear.bias": 0.1}
    factor["objective.log_scale"] = 2.0
    seen = set()
    for group in built.param_groups:
        for name in names(model, group):
            seen.add(name)
            assert group["lr"] == pytest.approx(0.1 * factor.get(name, 1.0) * decay ** DEPTHS[name])
            assert (group["weight_decay"] > 0) == (name in ("embed.weight", "linear.weight"))
    assert seen == set(DEPTHS)
    assert len({group["name"] for group in built.param_groups}) == len(built.param_groups)


def test_the_longest_part_counts_and_no_rate_is_0() -> None:
    model = nn.ModuleDict({"image": nn.ModuleDict({"encoder": nn.Linear(2, 2), "head": nn.Linear(2, 2)})})
    optimization = Optimization(partial(torch.optim.SGD, lr=1.0), rates={"image.encoder": 0.1, "image": 0.5})
    named = [(f"model.{name}", parameter) for name, parameter in model.named_parameters()]
    rates = {group["rate"] for group in optimization.build_optimizer(named).param_groups}
    assert rates == {0.1, 0.5}
    with pytest.raises(ValueError, match=r"above 0; freeze what shall not move"):
        Optimization(torch.optim.SGD, rates={"image": 0.0})


@pytest.mark.parametrize("factor", [0.0, 1.1, -0.5])
def test_an_impossible_layer_decay_is_refused(factor: float) -> None:
    with pytest.raises(ValueError, match=f"layer_decay={factor}"):
        Optimization(torch.optim.SGD, layer_decay=factor)


@given(st.integers(0, 50), st.integers(1, 100), st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_rises_then_falls_within_its_bounds(warmup: int, total: int, min_ratio: float) -> None:
    ratios = [
        warmup_cosine(step, warmup_steps=warmup, total_steps=total, min_ratio=min_ratio)
        for step in range(total + 5)
    ]
    top = min(warmup, total)
    assert all(0 < ratio <= 1 for ratio in ratios[:total])
    assert ratios[:top] == sorted(ratios[:top])
    assert ratios[max(warmup, total) :] == [min_ratio] * (total + 5 - max(warmup, total))
    if warmup < total:
        assert ratios[warmup] == pytest.approx(1.0)
        assert ratios[warmup:] == sorted(ratios[warmup:], reverse=True)


def test_halfway_of_the_cosine_is_halfway_between() -> None:
    assert warmup_cosine(60, warmup_steps=20, total_steps=100, min_ratio=0.2) == pytest.approx(0.6)
    assert warmup_cosine(9, warmup_steps=19, total_steps=100, min_ratio=0.2) == pytest.approx(0.5)


def test_cosine_equals_torch_without_warmup() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20, eta_min=0.5)
    for step in range(20):
        ratio = warmup_cosine(step, warmup_steps=0, total_steps=20, min_ratio=0.25)
        assert reference.get_last_lr()[0] == pytest.approx(2.0 * ratio, rel=1e-9)
        optimizer.step()
        reference.step()


def test_warmup_is_steps_or_a_share() -> None:
    for warmup in (10, 0.1):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = WarmupCosine(warmup=warmup)(optimizer, 100)
        rates = []
        for _ in range(100):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        assert rates.index(max(rates)) == 10
        assert rates[0] == pytest.approx(1 / 11)
        assert rates[-1] == pytest.approx((1 + math.cos(math.pi * 89 / 90)) / 2)


def test_schedule_survives_a_checkpoint() -> None:
    def build() -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        return optimizer, WarmupCosine(warmup=3, min_ratio=0.1)(optimizer, 20)

    optimizer, schedule = build()
    for _ in range(7):
        optimizer.step()
        schedule.step()
    saved = io.BytesIO()
    torch.save([optimizer.state_dict(), schedule.state_dict()], saved)
    saved.seek(0)
    states = torch.load(saved, weights_only=True)
    again, schedule_again = build()
    again.load_state_dict(states[0])
    schedule_again.load_state_dict(states[1])
    for _ in range(3):
        optimizer.step()
        schedule.step()
        again.step()
        schedule_again.step()
    assert schedule_again.get_last_lr() == schedule.get_last_lr()


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"warmup": 1.5}, "warmup=1.5"), ({"warmup": -1}, "warmup=-1"), ({"min_ratio": 2.0}, "min_ratio=2.0")],
)
def test_impossible_settings_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WarmupCosine(**settings)


def test_a_run_without_end_cannot_be_scheduled() -> None:
    with pytest.raises(ValueError, match="total_steps=-1"):
        WarmupCosine()(torch.optim.SGD([nn.Parameter(torch.zeros(1))]), -1)


def test_built_from_a_config() -> None:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--optimization", type=Optimization)
    config = parser.parse_object(
        {
            "optimization": {
                "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5, "weight_decay": 0.1}},
                "schedule": {"warmup": 4},
            }
        }
    )
    optimization = parser.instantiate(config).optimization
    assert isinstance(optimization, Optimization)
    optimizer = optimization.build_optimizer(Small().named_parameters())
    optimization.build_schedule(optimizer, 20)
    assert isinstance(optimizer, torch.optim.SGD)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.1]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
