"""Averages of weights, uniform and greedy."""

from __future__ import annotations

import pytest
import torch

from mmlab.runs.checkpoint import Weights
from mmlab.runs.soup import average, check_alike, greedy


def weights(value: float, **bases: str) -> Weights:
    state = {"w": torch.full((2,), value), "count": torch.tensor(int(value))}
    return Weights(state, bases)


def test_the_average_is_that_of_numbers_in_float64() -> None:
    torch.manual_seed(0)
    states = [Weights({"w": torch.randn(50) * 1e3}, {}, stage) for stage in range(3)]
    wanted = torch.stack([w.state["w"].double() for w in states]).mean(0).float()
    found = average(states)
    assert torch.equal(found.state["w"], wanted)
    assert found.stage == 2


def test_low_precision_is_averaged_above_it() -> None:
    states = [Weights({"w": torch.tensor([value]).bfloat16()}, {}) for value in (1.0, 1.0078125, 1.015625)]
    assert average(states).state["w"] == torch.tensor([1.0078125]).bfloat16()


def test_counts_are_the_first_ones() -> None:
    assert average([weights(3.0), weights(9.0)]).state["count"] == 3


@pytest.mark.parametrize(
    ("values", "members"),
    [
        ([1.0, 5.0, 9.5], [1]),  # one is right alone, and every other pulls it away
        ([4.0, 6.5, 100.0], [0, 1]),  # the mean of two is nearer than both
        ([9.0, 2.0, 4.5], [2]),  # 4.5 first; with 2: 3.25, with 9: 6.75
    ],
)
def test_greedy_keeps_what_does_not_lower_the_score(values: list[float], members: list[int]) -> None:
    def score(soup: Weights) -> float:
        return -abs(float(soup.state["w"][0]) - 5.0)

    ingredients = [weights(value) for value in values]
    soup = greedy(ingredients, score, scores=[score(one) for one in ingredients])
    mean = sum(values[number] for number in members) / len(members)
    assert soup.members == members
    assert soup.score == pytest.approx(-abs(mean - 5.0))
    assert soup.weights.state["w"].tolist() == pytest.approx([mean, mean])


def test_greedy_where_lower_is_better() -> None:
    values = [4.0, 6.0, 100.0]
    soup = greedy(
        [weights(v) for v in values], lambda w: abs(float(w.state["w"][0]) - 5.0),
        scores=[abs(v - 5.0) for v in values], higher_is_better=False,
    )  # fmt: skip
    assert soup.members == [0, 1]
    assert soup.score == 0.0


def test_an_equal_score_is_kept() -> None:
    soup = greedy([weights(1.0), weights(2.0)], lambda w: 0.5, scores=[0.5, 0.5])
    assert soup.members == [0, 1]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (weights(1.0, image="b"), "a and b were trained beside other pretrained weights of image"),
        (weights(1.0), "a and b were trained beside other pretrained weights"),
        (
            Weights({"w": torch.ones(3), "count": torch.tensor(1)}, {"image": "a"}),
            r"other tensors \(w, ...\)",
        ),
        (Weights({"w": torch.ones(2)}, {"image": "a"}), r"other tensors \(count, ...\)"),
    ],
)
def test_what_is_not_alike_is_refused(other: Weights, message: str) -> None:
    check_alike({"a": weights(1.0, image="a"), "c": weights(2.0, image="a")})
    with pytest.raises(ValueError, match=message):
        check_alike({"a": weights(1.0, image="a"), "b": other})
