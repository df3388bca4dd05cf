"""Full ranking, against scikit-learn and against counting one by one."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from gloo_ranks import Ranks
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from mmlab.batch import NOBODY, Batch, Embeddings, Input
from mmlab.metrics.recommendation import (
    DEPTHS,
    NEVER,
    Catalogue,
    RecommendationMetrics,
    Told,
    rank_catalogue,
    recommendation_scores,
    score_user,
)


def catalogue(items: int, dim: int, rng: np.random.Generator) -> Catalogue:
    vector = torch.from_numpy(rng.normal(size=(items, dim)).astype(np.float32))
    kind = tuple("cold" if number % 3 == 0 else "warm" for number in range(items))
    return Catalogue(vector, torch.arange(items) * 2, kind, tuple(range(items)))


def told(users: int, offered: Catalogue, rng: np.random.Generator) -> list[Told]:
    found = []
    for place in range(users):
        drawn = rng.permutation(offered.number.numpy())
        history, wanted = drawn[: rng.integers(0, 9)], drawn[9 : 10 + rng.integers(0, 12)]
        vector = torch.from_numpy(rng.normal(size=offered.vector.shape[1]).astype(np.float32))
        numbers = torch.from_numpy(history.astype(np.int64))
        found.append(Told(place, f"u{place}", vector, numbers, tuple(int(n) for n in wanted)))
    return found


def one_by_one(user: Told, offered: Catalogue) -> dict[str, float]:
    """The scores of a user by sorting a list."""
    scores = {
        int(number): float(vector.double() @ user.vector.double())
        for number, vector in zip(offered.number, offered.vector, strict=True)
        if int(number) not in user.history.tolist()
    }
    ranking = sorted(scores, key=lambda number: -scores[number])
    found = {}
    for k in DEPTHS:
        hits = [place for place, number in enumerate(ranking[:k], start=1) if number in user.wanted]
        ideal = sum(1 / math.log2(1 + place) for place in range(1, min(k, len(user.wanted)) + 1))
        found[f"recall{k}"] = len(hits) / len(user.wanted)
        found[f"ndcg{k}"] = sum(1 / math.log2(1 + place) for place in hits) / ideal
        precisions = [(n + 1) / place for n, place in enumerate(hits)]
        found[f"map{k}"] = sum(precisions) / min(k, len(user.wanted))
        found[f"hit{k}"] = float(len(hits) > 0)
    return found


@settings(deadline=None)
@given(st.integers(0, 2**31 - 1))
def test_as_counted_one_by_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    offered = catalogue(60, 5, rng)
    users = told(7, offered, rng)
    found = recommendation_scores(users, offered)
    slow = [one_by_one(user, offered) for user in users]
    for name in slow[0]:
        assert found[name] == pytest.approx(sum(one[name] for one in slow) / len(slow), abs=1e-12), name


def test_ndcg_as_scikit_learn_has_it() -> None:
    rng = np.random.default_rng(0)
    offered = catalogue(80, 6, rng)
    users = [one._replace(history=one.history[:0]) for one in told(20, offered, rng)]
    found = recommendation_scores(users, offered)
    relevant = np.array([[int(n) in one.wanted for n in offered.number] for one in users]).astype(float)
    scores = torch.stack([one.vector for one in users]).double() @ offered.vector.double().T
    for k in DEPTHS:
        assert found[f"ndcg{k}"] == pytest.approx(ndcg_score(relevant, scores.numpy(), k=k), abs=1e-9)


def test_what_a_user_has_is_not_offered_again() -> None:
    offered = Catalogue(torch.eye(4), torch.arange(4), ("",) * 4, (0,) * 4)
    vector = torch.tensor([4.0, 3.0, 2.0, 1.0])
    user = Told(0, "u", vector, torch.tensor([0, 1]), (3,))
    lists = rank_catalogue([user], offered, depth=4)
    assert lists.best.tolist() == [[2, 3, -1, -1]]
    assert [rank.tolist() for rank in lists.ranks] == [[2]]


def test_what_is_not_offered_is_never_found() -> None:
    offered = Catalogue(torch.eye(2), torch.tensor([0, 5]), ("", ""), (0, 1))
    user = Told(0, "u", torch.ones(2), torch.tensor([], dtype=torch.int64), (5, 77))
    (rank,) = rank_catalogue([user], offered).ranks
    assert rank[-1] == NEVER
    assert score_user(rank)["recall50"] == 0.5


def test_a_model_that_maps_everything_to_one_point_comes_last() -> None:
    offered = Catalogue(torch.ones(100, 3), torch.arange(100), ("",) * 100, (0,) * 100)
    user = Told(0, "u", torch.ones(3), torch.tensor([], dtype=torch.int64), (0, 1))
    (rank,) = rank_catalogue([user], offered).ranks
    assert rank.tolist() == [99, 100]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_item_of_which_a_diverged_model_says_nothing_comes_last(value: float) -> None:
    offered = Catalogue(torch.tensor([[value], [-0.5], [-0.7]]), torch.arange(3), ("",) * 3, (0, 1, 2))
    user = Told(0, "u", torch.tensor([1.0]), torch.tensor([], dtype=torch.int64), (0, 2))
    (ranks,) = rank_catalogue([user], offered).ranks
    assert ranks.tolist() == [2, 3]


class Output(NamedTuple):
    user: Embeddings
    item: Embeddings


def evaluation(rank: int = 0, ranks: int = 1) -> tuple[Output, Batch]:
    """Four items, two users and padding; user 5 wants items 1 and 2 and has item 0. The share of a rank."""
    rows = [[NOBODY, n, NOBODY] for n in range(4)] + [
        [5, NOBODY, 0],
        [6, NOBODY, 3],
        [NOBODY] * 3,
        [NOBODY] * 3,
    ]
    vectors = torch.tensor([[9.0, 0], [1, 0], [2, 0], [0, 1], [1, 0.1], [0.1, 1], [9, 9], [9, 9]])
    own = torch.arange(8)[rank::ranks]
    embeddings = Embeddings(vectors[own], own, own)
    present = torch.tensor(rows)[own].amax(dim=1) != NOBODY
    batch = Batch(
        keys=tuple("abcduv  "[n].strip() for n in own),
        place=own,
        valid=present,
        group=own,
        signal=Input(
            torch.tensor(rows)[own],
            owner=torch.where(present, torch.arange(len(own)), NOBODY),
            present=present,
            length=torch.full_like(own, 3),
        ),
        references=tuple({4: ("1", "2"), 5: ("2",)}.get(int(n), ()) for n in own),
        kinds=tuple(("warm", "cold", "cold", "warm", "", "", "", "")[n] for n in own),
    )
    return Output(embeddings, embeddings), batch


def measured(rank: int = 0, ranks: int = 1) -> dict[str, float]:
    metrics = RecommendationMetrics()
    metrics.update(*evaluation(rank, ranks))
    return metrics.compute()


def test_an_evaluation() -> None:
    found = measured()
    assert found["users"] == 2
    # User 5 finds 2, then 1; user 6 finds 0, then 2.
    assert found["map5"] == pytest.approx((1 + 1 / 2) / 2)
    assert found["coverage5"] == 1
    # Among the cold ones both find 2 first.
    assert found["map5@cold"] == 1
    assert "map5@warm" not in found
    assert found["users@warm"] == 0


def on_rank() -> dict[str, float]:
    return measured(torch.distributed.get_rank(), 2)


def test_two_ranks_say_the_same(ranks: Ranks) -> None:
    first, second = ranks(on_rank)
    assert first == second == measured()


def test_what_is_wanted_must_be_numbers() -> None:
    output, batch = evaluation()
    wrong = replace(batch, references=(*batch.references[:4], ("Heat",), *batch.references[5:]))
    with pytest.raises(ValueError, match="sample 'u': what is wanted is Heat: name the numbers of items"):
        RecommendationMetrics().update(output, wrong)
