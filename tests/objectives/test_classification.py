"""Soft-target cross-entropy against its formula in float64, and on two ranks against one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mmlab import collectives
from mmlab.batch import Batch
from mmlab.objectives.classification import SoftCrossEntropy, soft_cross_entropy
from mmlab.objectives.loss import losses_by_source

TARGET = torch.tensor([[1.0, 0, 0], [0.3, 0.7, 0], [0, 0.2, 0.1], [0, 0, 0], [0, 0, 1.0], [0.1, 0.1, 0.8]])
"""One answer; ten answers; seven of ten outside the list; all outside; and two more."""
PLACE = torch.tensor([4, 9, 2, 7, 5, 1])


def logits() -> Tensor:
    return (4 * torch.randn(6, 3, generator=torch.Generator().manual_seed(0))).requires_grad_()


def by_hand(scores: Tensor, target: Tensor, smoothing: float = 0.0) -> float:
    whole = math.fsum(math.exp(score) for score in scores.tolist())
    weight = float(target.double().sum())
    return -math.fsum(
        ((1 - smoothing) * t + smoothing * weight / len(target)) * (score - math.log(whole))
        for score, t in zip(scores.tolist(), target.double().tolist(), strict=True)
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_against_the_formula_in_float64(smoothing: float) -> None:
    losses = soft_cross_entropy(logits(), TARGET, label_smoothing=smoothing)
    expected = [by_hand(s, t, smoothing) for s, t in zip(logits().double(), TARGET, strict=True)]
    assert losses.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert losses[3] == 0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_whole_distribution_is_torch_s_own_loss(smoothing: float) -> None:
    rows = torch.tensor([0, 1, 4, 5])
    expected = torch.nn.functional.cross_entropy(
        logits()[rows], TARGET[rows], reduction="none", label_smoothing=smoothing
    )
    losses = soft_cross_entropy(logits(), TARGET, label_smoothing=smoothing)
    torch.testing.assert_close(losses[rows], expected, rtol=1e-5, atol=1e-6)


def test_half_precision_is_computed_in_float32() -> None:
    low = logits().detach().bfloat16()
    assert torch.equal(soft_cross_entropy(low, TARGET), soft_cross_entropy(low.float(), TARGET))


def test_a_sample_weighs_what_its_answers_in_the_list_do() -> None:
    scores = logits()
    loss = SoftCrossEntropy()(scores, TARGET, PLACE)
    expected = sum(by_hand(s, t) for s, t in zip(scores.detach().double(), TARGET, strict=True))
    value = loss.value.item()
    assert value == pytest.approx(expected / 4.3, rel=1e-5)
    (share,) = loss.shares
    assert share.weight.tolist() == pytest.approx([1, 1, 0.3, 0, 1, 1])
    assert float(share.loss.sum() / share.weight.sum()) == pytest.approx(value, rel=1e-6)
    assert torch.equal(share.place, PLACE)
    assert not share.loss.requires_grad
    loss.value.backward()
    assert (scores.grad[3] == 0).all()


def test_nothing_to_learn_is_a_loss_of_zero_with_a_gradient() -> None:
    scores = logits()
    loss = SoftCrossEntropy()(scores, torch.zeros_like(TARGET), PLACE)
    loss.value.backward()
    assert loss.value == 0
    assert (scores.grad == 0).all()


def part(rank: int) -> tuple[float, Any, dict[str, float]]:
    """Value, gradient and losses by source of one rank's samples: the first two, or the other four."""
    rows = slice(0, 2) if rank == 0 else slice(2, 6)
    scores = logits()
    loss = SoftCrossEntropy()(scores[rows], TARGET[rows], PLACE[rows])
    loss.value.backward()
    source = torch.tensor([0, 1, 0, 0, 1, 0])[rows]
    every = torch.ones(len(source), dtype=torch.bool)
    batch = Batch(("k",) * len(source), PLACE[rows], every, PLACE[rows], source=source, sources=("x", "y"))
    return loss.value.item(), scores.grad.numpy(), losses_by_source({"answer": loss}, batch)


def ranks_part() -> tuple[float, Any, dict[str, float]]:
    return part(collectives.rank())


def test_the_mean_over_ranks_is_the_loss_of_the_global_batch(ranks: Any) -> None:
    scores = logits()
    whole = SoftCrossEntropy()(scores, TARGET, PLACE)
    whole.value.backward()
    values, gradients, sources = zip(*ranks(ranks_part), strict=True)
    assert sum(values) / 2 == pytest.approx(whole.value.item(), rel=1e-6)
    torch.testing.assert_close(torch.from_numpy(sum(gradients) / 2), scores.grad, rtol=1e-5, atol=1e-7)
    losses = [by_hand(s, t) for s, t in zip(scores.detach().double(), TARGET, strict=True)]
    for found in sources:
        assert found["loss@x"] == pytest.approx((losses[0] + losses[2] + losses[5]) / 2.3, rel=1e-5)
        assert found["loss@y"] == pytest.approx((losses[1] + losses[4]) / 2, rel=1e-5)


def test_smoothing_is_a_share() -> None:
    with pytest.raises(ValueError, match=r"label_smoothing=1.0: it must be at least 0 and below 1"):
        SoftCrossEntropy(1.0)
