"""The linear probe and the words that are told: against scikit-learn, and on two ranks."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeClassifier
from torch import Tensor

from mmlab.batch import NOBODY, Batch, Input
from mmlab.metrics.probe import LinearProbe, probe, ridge_scores
from mmlab.metrics.told_words import ToldWordScores

SAMPLES, CLASSES = 24, 3


def clusters(count: int, dim: int, *, spread: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Vectors around one point for each class."""
    rng = np.random.default_rng(seed)
    label = np.arange(count) % CLASSES
    points = 3 * rng.normal(size=(CLASSES, dim))[label] + spread * rng.normal(size=(count, dim)) + 5
    return torch.from_numpy(points).float(), torch.from_numpy(label)


class TestRidge:
    @pytest.mark.parametrize(("count", "dim"), [(40, 6), (10, 30), (8, 8)])
    @pytest.mark.parametrize("penalty", [1e-3, 0.5])
    def test_is_that_of_scikit_learn(self, count: int, dim: int, penalty: float) -> None:
        known, label = clusters(count, dim, spread=3.0)
        asked, _ = clusters(17, dim, spread=3.0, seed=1)
        found = ridge_scores(known, label, asked, classes=CLASSES, penalty=penalty)
        centred = known.double() - known.double().mean(dim=0)
        cost = penalty * float(centred.square().sum()) / min(count, dim)
        expected = RidgeClassifier(alpha=cost).fit(known.double().numpy(), label.numpy())
        np.testing.assert_allclose(
            found.numpy(), expected.decision_function(asked.double().numpy()), rtol=1e-6, atol=1e-8
        )

    def test_scale_does_not_matter(self) -> None:
        known, label = clusters(30, 5)
        once, thousand = (
            ridge_scores(scale * known, label, scale * known, classes=CLASSES, penalty=0.1)
            for scale in (1, 1000)
        )
        torch.testing.assert_close(once, thousand, rtol=1e-5, atol=1e-5)

    def test_vectors_that_are_all_alike_say_the_commonest(self) -> None:
        label = torch.tensor([0, 1, 1])
        found = ridge_scores(torch.ones(3, 4), label, torch.ones(1, 4), classes=2, penalty=0.1)
        assert int(found.argmax()) == 1


class TestProbe:
    def test_tells_apart_what_lies_apart_and_nothing_else(self) -> None:
        vector, label = clusters(60, 8, spread=0.5)
        group = torch.arange(60)
        assert float(probe(vector, label, group).right.double().mean()) == 1.0
        noise = torch.randn(3000, 8, generator=torch.Generator().manual_seed(0))
        told = probe(noise, torch.arange(3000) % CLASSES, torch.arange(3000))
        assert float(told.right.double().mean()) == pytest.approx(1 / 3, abs=0.05)
        assert float(told.chance.double().mean()) == pytest.approx(1 / 3, abs=0.05)

    def test_a_group_is_never_in_both_halves(self) -> None:
        """Vectors that give the group away: with its twin in the other half each would be told."""
        pairs = 40
        vector = torch.eye(pairs).repeat(2, 1)
        label = torch.randint(2, (pairs,), generator=torch.Generator().manual_seed(0)).repeat(2)
        told = probe(vector, label, torch.arange(pairs).repeat(2))
        assert float(told.right.double().mean()) < 0.75

    def test_a_label_that_the_other_half_lacks_cannot_be_right(self) -> None:
        told = probe(torch.eye(4), torch.tensor([0, 1, 0, 1]), torch.arange(4))
        assert not told.right.any()

    def test_one_group_alone_is_never_right(self) -> None:
        told = probe(torch.eye(3), torch.tensor([0, 1, 0]), torch.zeros(3, dtype=torch.int64))
        assert not told.right.any()


def make_batch(places: list[int]) -> Batch:
    count = len(places)
    place = torch.tensor(places)
    valid = place >= 0
    text = Input(
        torch.zeros(count, 2, dtype=torch.int64), torch.arange(count), place % 5 != 4, torch.full((count,), 2)
    )
    return Batch(
        keys=tuple(map(str, places)),
        place=place,
        valid=valid,
        group=torch.where(valid, place // 2, NOBODY),
        text=text,
        references=tuple((f"c{number % CLASSES}",) if number % 7 else () for number in places),
    )


def probed(rank: int, ranks: int, batch: int) -> dict[str, float]:
    """What a rank computes that gets every so manieth batch; the last one of each is padded."""
    vector, _ = clusters(SAMPLES, 5, spread=6.0)
    metric = LinearProbe()
    for start in range(batch * rank, SAMPLES, batch * ranks):
        places = [*range(start, min(start + batch, SAMPLES)), -1]
        metric.update({"text": vector[places]}, make_batch(places))
    return metric.compute()


def probed_here(ranks: int, batch: int) -> dict[str, float]:
    return probed(torch.distributed.get_rank(), ranks, batch)


class TestMetric:
    def test_the_same_on_any_number_of_ranks(self, ranks: Any) -> None:
        alone = probed(0, 1, 5)
        assert set(alone) == {
            f"probe/text/{name}" for name in ("accuracy", "accuracy_low", "accuracy_high", "chance_accuracy")
        }
        assert 0 < alone["probe/text/accuracy"] < 1
        for batch in (3, 12):
            assert ranks(probed_here, 2, batch) == [alone, alone]

    def test_samples_without_label_or_modality_are_left_out(self) -> None:
        vector, label = clusters(SAMPLES, 5, spread=6.0)
        used = [n for n in range(SAMPLES) if n % 5 != 4 and n % 7]
        expected = probe(vector[used], label[used], torch.tensor(used) // 2)
        assert probed(0, 1, 5)["probe/text/accuracy"] == float(expected.right.double().mean())

    def test_nothing_without_labels_and_anew_after_a_reset(self) -> None:
        metric = LinearProbe()
        assert metric.compute() == {}
        metric.update({"text": torch.randn(4, 3)}, make_batch([1, 2, 3, 5]))
        assert metric.compute() != {}
        metric.reset()
        assert metric.compute() == {}


class Told(NamedTuple):
    logits: Tensor
    token: Tensor
    place: Tensor


def told(rank: int, ranks: int) -> dict[str, float]:
    logits = torch.randn(30, 9, generator=torch.Generator().manual_seed(0))
    scores = ToldWordScores()
    own = torch.arange(30) % ranks == rank
    place = torch.arange(30) // 3
    scores.update(Told(logits[own], torch.arange(30)[own] % 9, place[own]))
    return scores.compute()


def told_here() -> dict[str, float]:
    return told(torch.distributed.get_rank(), 2)


def test_words_told_on_any_number_of_ranks(ranks: Any) -> None:
    logits = torch.randn(30, 9, generator=torch.Generator().manual_seed(0)).double()
    token = torch.arange(30) % 9
    p = logits.exp() / logits.exp().sum(dim=1, keepdim=True)
    expected = {
        "accuracy": float((p.argmax(dim=1) == token).double().mean()),
        "loss": float(-p[range(30), token].log().mean()),
    }
    assert told(0, 1) == pytest.approx(expected, rel=1e-6)
    for one in ranks(told_here):
        assert one == pytest.approx(expected, rel=1e-6)
    assert ToldWordScores().compute() == {}
