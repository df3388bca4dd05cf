"""Gradient-Blend: weights by hand, losses times their weights, estimates from one validation to the next."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmlab.balance.blend import (
    FLOOR,
    LEAST_GROWTH,
    GradientBlend,
    Measured,
    blend_weights,
    reweighed,
    scaled,
)
from mmlab.batch import Modality
from mmlab.models.fusion_classifier import Classified
from mmlab.models.unimodal import Alone
from mmlab.objectives.loss import Loss, mean_of


def test_a_weight_is_what_was_gained_over_the_square_of_what_was_overfitted() -> None:
    before = [Measured(1.0, 1.2), Measured(1.0, 1.0), Measured(0.9, 1.1)]
    after = [Measured(0.5, 1.0), Measured(0.6, 0.8), Measured(0.5, 1.15)]
    # G = 0.2, 0.2, -0.05; O = 0.5 - 0.2, 0.2 - 0, ...: 0.2 / 0.09, 0.2 / 0.04, 0.
    first, second = 0.2 / 0.3**2, 0.2 / 0.2**2
    wanted = [first / (first + second), second / (first + second), 0]
    assert blend_weights(before, after) == pytest.approx(wanted)


def test_where_nothing_is_gained_nothing_is_known() -> None:
    assert blend_weights([Measured(1, 1)] * 2, [Measured(0.5, 1.0), Measured(0.5, 1.5)]) is None


def test_overfitting_that_does_not_grow_counts_as_the_least() -> None:
    found = blend_weights([Measured(1, 1)] * 2, [Measured(0.5, 0.5), Measured(0.4, 0.5)])
    first, second = 0.5 / LEAST_GROWTH**2, 0.5 / 0.1**2
    assert found == pytest.approx([first / (first + second), second / (first + second)])


@given(st.lists(st.tuples(*(st.floats(0, 5) for _ in range(4))), min_size=2, max_size=5))
def test_weights_add_up_to_one(losses: list[tuple[float, float, float, float]]) -> None:
    before = [Measured(a, b) for a, b, _, _ in losses]
    after = [Measured(c, d) for _, _, c, d in losses]
    found = blend_weights(before, after)
    if found is None:
        assert all(old.validated <= new.validated for old, new in zip(before, after, strict=True))
    else:
        assert sum(found) == pytest.approx(1)
        assert min(found) >= 0
        weights = reweighed([2.0] * len(losses), before, after)
        assert weights is not None
        assert sum(weights) == pytest.approx(1)
        assert min(weights) >= FLOOR / len(losses) - 1e-12


def test_a_branch_that_gains_nothing_keeps_a_part_of_the_floor() -> None:
    before, after = [Measured(1, 1)] * 3, [Measured(0.5, 1.2), Measured(0.5, 0.7), Measured(0.5, 0.9)]
    # G = 0, 0.3, 0.1; O = 0.7, 0.2, 0.4.
    second, third = 0.3 / 0.2**2, 0.1 / 0.4**2
    rest = [0, second / (second + third), third / (second + third)]
    wanted = [0.1 / 3 + 0.9 * weight for weight in rest]
    assert reweighed([1 / 3] * 3, before, after) == pytest.approx(wanted, rel=1e-12)
    assert reweighed([1 / 3] * 3, before, [Measured(0.5, 1.2)] * 3) is None


@pytest.mark.parametrize("moment", [0, 1])
def test_a_branch_without_a_number_keeps_its_share(moment: int) -> None:
    before, after = [Measured(1, 1)] * 3, [Measured(0.5, 0.9), Measured(0.5, 0.7), Measured(0.5, 0.9)]
    pairs = [before, list(after)]
    pairs[moment] = [pairs[moment][0], Measured(0.5, math.nan), pairs[moment][2]]
    found = reweighed([1.0, 2.0, 1.0], *pairs)
    others = blend_weights([before[0], before[2]], [after[0], after[2]])
    assert others is not None
    wanted = [0.5 * (0.1 / 2 + 0.9 * weight) for weight in others]
    assert found == pytest.approx([wanted[0], 0.5, wanted[1]], rel=1e-12)
    nothing = [Measured(math.nan, math.nan)] * 3
    assert reweighed([1.0, 2.0, 1.0], nothing, after) is None


def said(logits: float, *alone: float) -> Classified:
    """Two samples that have everything."""
    there = torch.ones(2, dtype=torch.bool)
    each = torch.tensor(alone)[None, :, None].expand(2, -1, 1)
    both = there[:, None].expand(2, len(alone))
    return Classified(torch.full((2, 1), logits), there, torch.arange(2), Alone(each, both))


def criterion(logits: torch.Tensor, counts: torch.Tensor) -> Loss:
    """The number itself is the loss."""
    return mean_of(logits[:, 0] * counts, counts.float(), torch.arange(2))


def made(**settings: Any) -> GradientBlend:
    blend = GradientBlend(**settings)
    blend.modalities = (Modality.TEXT, Modality.AUDIO)
    blend.start()
    return blend


def test_losses_are_weighed() -> None:
    blend = made(weights={"audio": 0.5, "text": 0.25, "fused": 2.0})
    losses = blend.losses("sentiment", said(1.0, 2.0, 3.0), criterion)
    found = {name: float(loss.value) for name, loss in losses.items()}
    assert found == {"sentiment": 2.0, "sentiment/text": 0.5, "sentiment/audio": 1.5}
    assert losses["sentiment/audio"].shares[0].loss.tolist() == [1.5, 1.5]
    assert scaled(losses["sentiment"], 0.5).value == 1
    equal = made().losses("sentiment", said(3.0, 3.0, 3.0), criterion)
    assert [float(loss.value) for loss in equal.values()] == pytest.approx([1, 1, 1])


def stretch(blend: GradientBlend, trained: list[float], validated: list[float]) -> dict[str, float]:
    blend.losses("x", said(*trained), criterion)
    blend.measure(said(*validated), criterion)
    return blend.after_validation()


def test_weights_are_taken_every_so_many_validations() -> None:
    blend = made(every=2)
    first, second = ([1.0, 1.0, 1.0], [1.2, 1.1, 1.0]), ([0.5, 0.6, 0.7], [1.0, 0.8, 0.9])
    stretch(blend, [9.0, 9.0, 9.0], [9.0, 9.0, 9.0])
    assert stretch(blend, *first) == pytest.approx({"loss/fused": 1.2, "loss/text": 1.1, "loss/audio": 1.0})
    stretch(blend, [9.0, 9.0, 9.0], [9.0, 9.0, 9.0])
    assert blend.weights == pytest.approx([1 / 3] * 3)
    stretch(blend, *second)
    pairs = [[Measured(*one) for one in zip(*part, strict=True)] for part in (first, second)]
    assert blend.weights == pytest.approx(reweighed([1 / 3] * 3, *pairs), rel=1e-5)
    assert blend.numbers() == dict(
        zip(("weight/fused", "weight/text", "weight/audio"), blend.weights, strict=True)
    )


def test_what_has_no_number_is_named_once_and_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    blend = made(every=1)
    silent = made(every=1)
    stretch(silent, [1.0, 1.0, 1.0], [1.2, 1.1, 1.0])
    assert caplog.text == ""
    for trained, validated in (([1.0] * 3, 1.2), ([0.5, 0.6, 0.7], 1.0), ([0.4, 0.4, 0.4], 0.9)):
        stretch(blend, trained, [validated, validated / 2, math.nan])
    assert caplog.text.count("no finite training and validation loss of audio: the weight stays") == 1
    assert blend.weights[2] == pytest.approx(1 / 3)
    assert sum(blend.weights) == pytest.approx(1)
    assert blend.weights[0] != pytest.approx(1 / 3, rel=0.05)


def test_a_step_that_is_not_finite_is_not_counted() -> None:
    blend = made(every=1)
    blend.losses("x", said(1.0, 2.0, 3.0), criterion)
    blend.losses("x", said(math.nan, 2.0, math.inf), criterion)
    # Sums over two samples of each step, and how many they are.
    assert blend.state_dict()["trained"] == [[2, 2], [8, 4], [6, 2]]


def test_what_it_knows_goes_on_from_its_state() -> None:
    whole, first = made(every=1), made(every=1)
    for one in (whole, first):
        stretch(one, [1.0, 1.0, 1.0], [1.2, 1.1, 1.0])
        one.losses("x", said(0.5, 0.6, 0.7), criterion)
    later = made(every=1)
    later.load_state_dict(first.state_dict())
    for one in (whole, later):
        stretch(one, [0.4, 0.4, 0.4], [1.0, 0.8, 0.9])
        stretch(one, [0.3, 0.2, 0.1], [0.9, 0.7, 0.8])
    assert later.weights == whole.weights
    assert made().state_dict() == {}


def test_settings_that_cannot_be_meant_are_refused() -> None:
    with pytest.raises(ValueError, match="none may be below 0, and one must be above it"):
        GradientBlend({"fused": -1.0, "text": 2.0})
    with pytest.raises(ValueError, match="none may be below 0, and one must be above it"):
        GradientBlend({"fused": 0.0})
    with pytest.raises(ValueError, match="every=0: it must be at least 1 validation"):
        GradientBlend(every=0)
