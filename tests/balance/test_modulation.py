"""Gradient modulation: the formulas by hand, noise that ranks agree on, settings that do not fit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from mmlab.balance.modulation import (
    GradientModulation,
    deviations,
    discrepancy_ratios,
    modulate,
    modulation_coefficients,
    right_scores,
)
from mmlab.objectives.classification import SoftCrossEntropy
from mmlab.objectives.scale import rank_errors
from mmlab.tasks.outcome import Ranks, Wanted

SHAPES = ((6, 4), (5, 3), (1,), (7,))


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_two_modalities_are_compared_as_the_paper_does() -> None:
    ratio = discrepancy_ratios(numbers(6, 4), numbers(10, 10))
    assert ratio.tolist() == pytest.approx([6 / 4, 4 / 6])
    coefficient = modulation_coefficients(ratio, alpha=0.5)
    assert coefficient.tolist() == pytest.approx([1 - math.tanh(0.5 * 1.5), 1])


def test_of_three_each_is_compared_with_the_mean_of_the_others() -> None:
    # Means 0.8, 0.4 and 0.2, over as many samples as have the modality.
    ratio = discrepancy_ratios(numbers(8, 2, 1), numbers(10, 5, 5))
    assert ratio.tolist() == pytest.approx([0.8 / 0.3, 0.4 / 0.5, 0.2 / 0.6])


@given(
    st.lists(st.tuples(st.integers(0, 9), st.floats(0.01, 1)), min_size=2, max_size=4),
    st.floats(0.05, 2),
)
def test_only_those_that_are_ahead_are_held_back(found: list[tuple[int, float]], alpha: float) -> None:
    count = numbers(*(number for number, _ in found))
    score = numbers(*(number * mean for number, mean in found))
    coefficient = modulation_coefficients(discrepancy_ratios(score, count), alpha=alpha)
    there = [mean for number, mean in found if number > 0]
    for (number, mean), k in zip(found, coefficient.tolist(), strict=True):
        assert 0 <= k <= 1
        apart = min(there, default=1) < 0.999 * max(there, default=1)  # at a ratio of 1 the formula jumps
        if number == 0 or len(there) < 2 or (apart and mean == min(there)):
            assert k == 1
        elif apart and mean == max(there):
            assert k == pytest.approx(1 - math.tanh(alpha * mean / ((sum(there) - mean) / (len(there) - 1))))


def test_a_score_is_the_probability_of_what_is_right() -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    # The second sample weighs half, the last one nothing.
    target = torch.tensor([[0, 1.0, 0], [0.5, 0, 0], [0, 0, 1.0], [0, 0, 0]])
    found = right_scores(SoftCrossEntropy()(logits, target, torch.arange(4)))
    right = logits.double().softmax(dim=1)[[0, 1, 2], [1, 0, 2]]
    assert found.tolist() == pytest.approx([float(right.sum()), 3], rel=1e-6)


def test_a_score_of_ranks_is_the_probability_of_all_steps() -> None:
    logits, rank = torch.tensor([[2.0, -1.0], [0.5, 0.3]]), torch.tensor([1.0, 2.0])
    loss = Ranks(["low", "middle", "high"]).loss(
        logits, Wanted(rank, torch.tensor([True, True])), torch.arange(2)
    )
    right = np.exp(-rank_errors(logits, rank.long()).double().numpy())
    assert right_scores(loss).tolist() == pytest.approx([right.sum(), 2], rel=1e-6)


def gradients() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [3 + torch.randn(shape, generator=generator) * (n + 1) for n, shape in enumerate(SHAPES)]


def test_noise_has_the_deviation_of_each_gradient() -> None:
    wanted = [g.double().std() if g.numel() > 1 else torch.tensor(0.0).double() for g in gradients()]
    torch.testing.assert_close(deviations(gradients()), torch.stack(wanted), rtol=1e-5, atol=1e-12)
    many = [torch.randn(200, 200, generator=torch.Generator().manual_seed(2)) * 3 + 5]
    before = many[0].clone()
    modulate(many, numbers(0.25)[0], seed=7)
    noise = many[0] - 0.25 * before
    assert float(noise.mean()) == pytest.approx(0, abs=0.05)
    assert float(noise.std()) == pytest.approx(float(before.std()), rel=0.02)


def test_noise_depends_on_its_seed_alone() -> None:
    found = []
    for seed in (7, 7, 8):
        torch.rand(3)  # draws of others change nothing
        some = gradients()
        modulate(some, numbers(0.5)[0], seed=seed)
        found.append(torch.cat([gradient.flatten() for gradient in some]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_what_a_batch_has_not_read_stays_as_it_is() -> None:
    """AdamW makes whole steps of any gradient, however small."""
    table, unread = torch.nn.Embedding(6, 4), torch.nn.Parameter(torch.ones(3))
    before = table.weight.detach().clone()
    optimizer = torch.optim.AdamW([table.weight, unread], lr=0.1, weight_decay=0.0)
    (table(torch.tensor([1, 4])).square().sum() + 0 * unread.sum()).backward()
    gradients = [weight.grad for weight in (table.weight, unread)]
    once = gradients[0].clone()
    modulate(gradients, numbers(0.5)[0], seed=7)
    assert (gradients[0] != 0.5 * once).any(dim=1).tolist() == [row in (1, 4) for row in range(6)]
    optimizer.step()
    assert (table.weight == before).all(dim=1).tolist() == [row not in (1, 4) for row in range(6)]
    assert unread.tolist() == [1.0, 1.0, 1.0]


def sharded(names: tuple[str, ...]) -> list[Any]:
    """What two ranks make of shards, or of copies, put together."""
    sizes = (2,) if len(names) == 1 else (2, 1)
    mesh = init_device_mesh("cpu", sizes, mesh_dim_names=names)
    placements = [Shard(0) if name == "shard" else Replicate() for name in names]
    parts = [distribute_tensor(g, mesh, placements) for g in gradients()]
    modulate(list(parts), numbers(0.5)[0], seed=7)
    assert all(isinstance(part, DTensor) for part in parts)
    return [part.full_tensor().numpy() for part in parts]


@pytest.mark.parametrize("names", [("shard",), ("replicate", "shard"), ("shard", "replicate")])
def test_shards_get_their_part_of_the_same_noise(ranks: Any, names: tuple[str, ...]) -> None:
    whole = gradients()
    modulate(whole, numbers(0.5)[0], seed=7)
    for found in ranks(sharded, names):
        for one, other in zip(found, whole, strict=True):
            torch.testing.assert_close(torch.from_numpy(one), other, rtol=1e-5, atol=1e-6)


def test_a_strength_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"alpha=0\.0: it must be above 0; leave balance out"):
        GradientModulation(0.0)
