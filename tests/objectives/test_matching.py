"""Matching: which pairs are asked about, how hard negatives are drawn, the loss."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmlab.batch import NOBODY
from mmlab.objectives.matching import Matching, hard_negatives, pairs_of, sample_vectors
from mmlab.objectives.noise import uniform

groups = st.lists(st.integers(-1, 3), min_size=1, max_size=9)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def vectors(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, 4, generator=generator), dim=1)


class TestNegatives:
    @settings(deadline=None, max_examples=100)
    @given(groups, st.integers(0, 99))
    def test_are_of_another_group_wherever_there_is_one(self, group: list[int], seed: int) -> None:
        similarity = 100 * vectors(len(group), seed) @ vectors(len(group), seed + 1).T
        found = hard_negatives(similarity, torch.tensor(group), noise(len(group), len(group), seed=seed))
        for own, drawn in zip(group, found.tolist(), strict=True):
            others = [n for n, other in enumerate(group) if NOBODY != other != own] if own != NOBODY else []
            assert drawn in others if others else drawn == NOBODY

    def test_are_drawn_in_proportion_to_the_likeness(self) -> None:
        """Against the softmax over the allowed ones, in float64; four standard errors."""
        group = torch.tensor([0, 1, 2, 0, 3, NOBODY])
        similarity = torch.tensor([[9.0, 1.0, 0.5, 9.0, -1.0, 9.0]]).expand(6, 6)
        draws = 20_000
        counts = torch.zeros(6)
        for number in range(draws // 100):
            places = torch.arange(100) + 100 * number
            for values in uniform(1, places[:, None, None], torch.arange(6)[:, None], torch.arange(6)):
                counts[hard_negatives(similarity, group, values)[0]] += 1
        allowed = torch.tensor([1, 2, 4])
        expected = similarity[0].double()[allowed].softmax(dim=0)
        assert float(counts[allowed].sum()) == draws
        error = 4 * (expected * (1 - expected) / draws).sqrt()
        assert ((counts[allowed] / draws - expected).abs() < error).all()

    def test_noise_at_its_ends_gives_numbers(self) -> None:
        for value in (0.0, 1 - 2**-24, 1.0):
            found = hard_negatives(torch.zeros(3, 3), torch.arange(3), torch.full((3, 3), value))
            assert found.tolist() == [1, 0, 0]


class TestPairs:
    def test_each_sample_has_its_own_and_two_that_are_wrong(self) -> None:
        group = torch.tensor([0, 1, 1, 2, NOBODY])
        pairs = pairs_of(torch.zeros(5, 5), group, noise(2, 5, 5))
        assert pairs.belongs.tolist() == [1.0] * 5 + [0.0] * 10
        assert pairs.weight.tolist() == [1.0, 1.0, 1.0, 1.0, 0.0] * 3
        for kind, (text, beside) in enumerate(
            zip(pairs.text.reshape(3, 5).tolist(), pairs.beside.reshape(3, 5).tolist(), strict=True)
        ):
            for sample in range(4):
                assert (text if kind < 2 else beside)[sample] == sample
                same = group[text[sample]] == group[beside[sample]]
                assert bool(same) == (kind == 0)

    def test_the_likeness_of_the_right_side_counts(self) -> None:
        """Text 0 is like picture 1, and picture 0 like text 2."""
        similarity = torch.zeros(3, 3)
        similarity[0, 1] = similarity[2, 0] = 1000.0
        pairs = pairs_of(similarity, torch.arange(3), noise(2, 3, 3))
        assert (int(pairs.text[3]), int(pairs.beside[3])) == (0, 1)
        assert (int(pairs.text[6]), int(pairs.beside[6])) == (2, 0)

    def test_the_vector_of_a_sample_is_the_direction_of_its_rows(self) -> None:
        rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [5.0, 5.0], [0.0, -1.0]])
        found = sample_vectors(rows, torch.tensor([0, 0, NOBODY, 2]), 3)
        half = 0.5**0.5
        torch.testing.assert_close(found, torch.tensor([[half, half], [0.0, 0.0], [0.0, -1.0]]))


class TestLoss:
    def choose(self, group: list[int]) -> tuple[Matching, object]:
        matching = Matching(0.1)
        own, count = torch.tensor(group), len(group)
        return matching, matching.choose(vectors(count), vectors(count, 1), own, torch.arange(count), seed=0)

    def test_is_the_mean_over_the_pairs_that_count(self) -> None:
        matching, pairs = self.choose([0, 1, 2, NOBODY])
        logits = torch.linspace(-3, 3, 12)
        loss = matching(logits, pairs, torch.arange(4))
        target = torch.tensor([1.0] * 4 + [0.0] * 8).double()
        p = 1 / (1 + (-logits.double()).exp())
        every = -(target * p.log() + (1 - target) * (1 - p).log())
        counted = torch.tensor([True, True, True, False] * 3)
        assert float(loss.value) == pytest.approx(float(every[counted].mean()), rel=1e-6)
        assert loss.shares[0].place.tolist() == [0, 1, 2, 3] * 3

    @pytest.mark.parametrize("group", [[0, 0, 0], [5], [NOBODY, NOBODY], [3, NOBODY]])
    def test_without_any_negative_it_is_zero_and_has_a_gradient(self, group: list[int]) -> None:
        matching, pairs = self.choose(group)
        logits = torch.randn(3 * len(group), requires_grad=True)
        loss = matching(logits, pairs, torch.arange(len(group))).value
        loss.backward()
        assert loss.item() == 0
        assert logits.grad is not None
        assert (logits.grad == 0).all()

    def test_lower_temperatures_draw_harder_ones(self) -> None:
        text, other, places = vectors(60), vectors(60, 1), torch.arange(60)
        likeness = text @ other.T
        means = []
        for temperature in (0.01, 0.2, 100.0):
            pairs = Matching(temperature).choose(text, other, places, places, seed=0)
            means.append(float(likeness[pairs.text[60:120], pairs.beside[60:120]].mean()))
        assert means == sorted(means, reverse=True)
        assert means[0] > means[2] + 0.5

    def test_a_temperature_of_zero_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"temperature=0\.0: it must be above 0"):
            Matching(0.0)
