"""Ranks and metrics against plain loops, scikit-learn, torchmetrics, enumeration, and two ranks."""

from __future__ import annotations

import itertools
import math
import statistics
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchmetrics.retrieval as peer
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import label_ranking_average_precision_score, ndcg_score
from torch import Tensor

from mmlab import collectives
from mmlab.batch import NOBODY, Embeddings, Modality
from mmlab.metrics import ranking
from mmlab.metrics.ranking import (
    Ranking,
    Scores,
    bootstrap_interval,
    evaluate_direction,
    rank_relevant,
)
from mmlab.metrics.retrieval import RetrievalMetrics


def rows(vector: Tensor, groups: list[int] | Tensor) -> Embeddings:
    groups = torch.as_tensor(groups, dtype=torch.int64)
    return Embeddings(vector, groups, torch.arange(len(groups)))


def from_scores(
    scores: Tensor, query_groups: list[int] | Tensor, candidate_groups: list[int] | Tensor
) -> tuple[Embeddings, Embeddings]:
    """Embeddings whose products are these scores exactly: queries are unit axes."""
    return rows(torch.eye(len(scores), dtype=scores.dtype), query_groups), rows(scores.T, candidate_groups)


def ranks_by_sorting(scores: list[float], relevant: list[bool]) -> list[int]:
    """Positions of what is relevant in the sorted list, in which ties put what is not relevant first."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], relevant[i]))
    return [position for position, i in enumerate(order, start=1) if relevant[i]]


def naive(scores: Tensor, query_groups: list[int], candidate_groups: list[int]) -> dict[str, float]:
    """Every metric by its definition, one query at a time."""
    answers = []
    for row, group in zip(scores.tolist(), query_groups, strict=True):
        kept = [(s, g == group) for s, g in zip(row, candidate_groups, strict=True) if g != NOBODY]
        if group != NOBODY and any(hit for _, hit in kept):
            answers.append(ranks_by_sorting([s for s, _ in kept], [hit for _, hit in kept]))
    mean = statistics.fmean
    return {
        "r1": mean(r[0] <= 1 for r in answers),
        "r5": mean(r[0] <= 5 for r in answers),
        "r10": mean(r[0] <= 10 for r in answers),
        "mrr": mean(1 / r[0] for r in answers),
        "ndcg10": mean(
            sum(1 / math.log2(1 + k) for k in r if k <= 10)
            / sum(1 / math.log2(1 + k) for k in range(1, min(len(r), 10) + 1))
            for r in answers
        ),
        "map": mean(mean(j / k for j, k in enumerate(r, start=1)) for r in answers),
        "median_rank": statistics.median(r[0] for r in answers),
        "queries": len(answers),
    }


class Case(NamedTuple):
    scores: Tensor
    query_groups: list[int]
    candidate_groups: list[int]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Scores with many ties, several relevant candidates, rows that take no part, groups without answer."""
    queries, candidates = draw(st.integers(1, 8)), draw(st.integers(1, 40))
    last = draw(st.integers(0, 6))
    generator = np.random.default_rng(draw(st.integers(0, 10_000)))
    scores = generator.integers(-4, 5, size=(queries, candidates)) / 4
    query_groups = generator.integers(NOBODY, last + 1, size=queries)
    candidate_groups = generator.integers(NOBODY, last + 1, size=candidates)
    query_groups[0] = candidate_groups[-1] = 0
    return Case(torch.tensor(scores, dtype=torch.float32), query_groups.tolist(), candidate_groups.tolist())


@pytest.mark.parametrize("few", [ranking.FEW, 0], ids=["passes", "search"])
@pytest.mark.parametrize("tile", [ranking.TILE, 7], ids=["one tile", "many tiles"])
def test_equals_sorting_each_query(few: int, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "FEW", few)
    monkeypatch.setattr(ranking, "TILE", tile)

    @given(cases())
    @settings(max_examples=60, deadline=None)
    def check(case: Case) -> None:
        result = evaluate_direction(*from_scores(*case))._asdict()
        for name, value in naive(*case).items():
            assert result[name] == pytest.approx(value, abs=1e-12), name

    check()


@given(cases(), st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_no_order_of_candidates_or_queries_matters(case: Case, random) -> None:
    queries, candidates = from_scores(*case)
    q = torch.tensor(random.sample(range(len(queries.group)), len(queries.group)))
    c = torch.tensor(random.sample(range(len(candidates.group)), len(candidates.group)))
    shuffled = evaluate_direction(
        Embeddings(*(field[q] for field in queries)), Embeddings(*(field[c] for field in candidates))
    )
    assert shuffled == pytest.approx(evaluate_direction(queries, candidates), abs=1e-12)


def five_captions(images: int) -> Case:
    generator = torch.Generator().manual_seed(3)
    scores = torch.rand(images, 5 * images, generator=generator) + 0.5  # torchmetrics ignores what is below 0
    own = torch.arange(images).repeat_interleave(5) == torch.arange(images)[:, None]
    return Case(scores + 0.3 * own, list(range(images)), torch.arange(images).repeat_interleave(5).tolist())


def test_agrees_with_torchmetrics() -> None:
    case = five_captions(60)
    result = evaluate_direction(*from_scores(*case))
    relevant = torch.tensor(case.query_groups)[:, None] == torch.tensor(case.candidate_groups)
    index = torch.arange(60)[:, None].expand_as(relevant)
    arguments = (case.scores.flatten(), relevant.flatten(), index.flatten())
    assert result.r1 == pytest.approx(peer.RetrievalHitRate(top_k=1)(*arguments).item(), rel=1e-6)
    assert result.r5 == pytest.approx(peer.RetrievalHitRate(top_k=5)(*arguments).item(), rel=1e-6)
    assert result.r10 == pytest.approx(peer.RetrievalHitRate(top_k=10)(*arguments).item(), rel=1e-6)
    assert result.mrr == pytest.approx(peer.RetrievalMRR()(*arguments).item(), rel=1e-6)
    assert result.map == pytest.approx(peer.RetrievalMAP()(*arguments).item(), rel=1e-6)
    assert result.ndcg10 == pytest.approx(peer.RetrievalNormalizedDCG(top_k=10)(*arguments).item(), rel=1e-6)
    assert 0.05 < result.r1 < 0.95


def test_agrees_with_scikit_learn() -> None:
    case = five_captions(40)
    result = evaluate_direction(*from_scores(*case))
    relevant = np.equal.outer(case.query_groups, case.candidate_groups)
    expected = label_ranking_average_precision_score(relevant, case.scores.numpy())
    assert result.map == pytest.approx(expected, rel=1e-12)
    assert result.ndcg10 == pytest.approx(ndcg_score(relevant, case.scores.numpy(), k=10), rel=1e-12)


@pytest.mark.parametrize("vector", [torch.ones(384) / 384**0.5, torch.full((384,), torch.nan)])
def test_a_model_that_gives_one_point_comes_last(vector: Tensor) -> None:
    """Identical vectors tie although matrix products of them differ by a few units of rounding."""
    images, captions = rows(vector.expand(33, -1), range(33)), rows(vector.expand(165, -1), [*range(33)] * 5)
    assert rank_relevant(images, captions).first.unique().tolist() == [161]
    assert rank_relevant(captions, images).first.unique().tolist() == [33]


def test_queries_without_answer_are_counted_and_left_out() -> None:
    scores = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.5, 0.4], [0.5, 0.4]])
    result = evaluate_direction(*from_scores(scores, [0, 1, 7, NOBODY], [0, 1]))
    assert (result.r1, result.queries, result.left_out, result.candidates) == (1.0, 2, 1, 2)


@pytest.mark.parametrize("candidates", [0, 3])
def test_no_answer_at_all_gives_no_number(candidates: int) -> None:
    result = evaluate_direction(*from_scores(torch.zeros(2, candidates), [7, 8], list(range(candidates))))
    assert (result.queries, result.left_out, result.candidates) == (0, 2, candidates)
    assert all(math.isnan(value) for value in result[:12])


def test_chance_is_the_mean_over_all_rankings() -> None:
    """Every order of six candidates, for queries with one, two and three relevant ones."""
    groups = [0, 1, 1, 2, 2, 2]
    perfect = from_scores(torch.rand(3, 6), [0, 1, 2], groups)
    result = evaluate_direction(*perfect)
    first = [
        min(i for i, g in enumerate(order, start=1) if g == group)
        for group in (0, 1, 2)
        for order in itertools.permutations(groups)
    ]
    assert result.chance_r1 == pytest.approx(statistics.fmean(f <= 1 for f in first), rel=1e-12)
    assert result.chance_r5 == pytest.approx(statistics.fmean(f <= 5 for f in first), rel=1e-12)
    assert result.chance_r10 == pytest.approx(1.0)
    assert result.chance_mrr == pytest.approx(statistics.fmean(1 / f for f in first), rel=1e-12)
    assert result.chance_median_rank == statistics.median(first)


def test_random_embeddings_stand_at_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    groups = torch.arange(40).repeat_interleave(torch.arange(40) % 7 + 1)
    queries = 8000
    result = evaluate_direction(
        *from_scores(
            torch.rand(queries, len(groups), generator=generator), torch.arange(queries) % 40, groups
        )
    )
    for name in ("r1", "r5", "r10"):
        chance = getattr(result, f"chance_{name}")
        error = math.sqrt(chance * (1 - chance) / queries)
        assert abs(getattr(result, name) - chance) < 4 * error, name
    assert result.mrr == pytest.approx(result.chance_mrr, rel=0.06)
    assert result.median_rank == pytest.approx(result.chance_median_rank, abs=1.5)


def test_chance_where_one_of_an_even_number_is_relevant() -> None:
    result = evaluate_direction(*from_scores(torch.rand(1, 100), [3], list(range(100))))
    assert result.chance_median_rank == 50.5
    assert result.chance_r10 == pytest.approx(0.1)


def test_bootstrap_covers_the_mean_of_clusters() -> None:
    """Values equal within a group: the interval is as wide as the number of groups says, not of queries."""
    generator = torch.Generator().manual_seed(0)
    covered, widths = 0, []
    for seed in range(100):
        hits = (torch.rand(80, generator=generator) < 0.3).repeat_interleave(5)
        scores = Scores(hits, torch.arange(80).repeat_interleave(5))
        interval = bootstrap_interval([scores], seed=seed, draws=300)
        covered += interval.low <= 0.3 <= interval.high
        widths.append(interval.high - interval.low)
    assert 88 <= covered <= 99
    assert statistics.fmean(widths) == pytest.approx(2 * 1.96 * math.sqrt(0.3 * 0.7 / 80), rel=0.05)


def test_bootstrap_repeats_with_its_seed() -> None:
    scores = Scores(torch.rand(30), torch.arange(30) // 2)
    assert bootstrap_interval([scores], seed=1) == bootstrap_interval([scores], seed=1)
    assert bootstrap_interval([scores], seed=1) != bootstrap_interval([scores], seed=2)
    with pytest.raises(ValueError, match="no query"):
        bootstrap_interval([Scores(scores.value[:0], scores.group[:0])], seed=1)


def test_two_kinds_of_one_group_are_drawn_together() -> None:
    """Twice the same scores tell nothing new: the interval stays as wide. Independent ones narrow it."""
    generator = torch.Generator().manual_seed(0)
    groups = torch.arange(200)
    one, other = (Scores(torch.rand(200, generator=generator), groups) for _ in range(2))
    elsewhere = other._replace(group=groups + 200)
    width = {}
    for name, scores in {"one": [one], "twice": [one, one], "apart": [one, elsewhere]}.items():
        interval = bootstrap_interval(scores, seed=0)
        width[name] = interval.high - interval.low
    assert width["twice"] == pytest.approx(width["one"])
    assert width["apart"] == pytest.approx(width["one"] / math.sqrt(2), rel=0.15)


class Output(NamedTuple):
    """Like a model's output."""

    image: Embeddings
    text: Embeddings

    def get(self, modality: Modality) -> Embeddings:
        return self.image if modality is Modality.IMAGE else self.text


def evaluation(samples: int) -> Output:
    """Images, each with three captions; some rows take no part."""
    generator = torch.Generator().manual_seed(5)
    image = F.normalize(torch.randn(samples, 16, generator=generator), dim=1)
    text = image.repeat_interleave(3, dim=0) + torch.randn(3 * samples, 16, generator=generator)
    group, place = torch.arange(samples) // 2, torch.arange(samples)
    captions = group.repeat_interleave(3).masked_fill(torch.arange(3 * samples) % 7 == 3, NOBODY)
    return Output(
        Embeddings(image, group.masked_fill(place % 5 == 1, NOBODY), place),
        Embeddings(F.normalize(text, dim=1), captions, place.repeat_interleave(3)),
    )


def compute_on_this_rank(shares: list[list[list[int]]]) -> tuple[dict[str, float], Embeddings]:
    """Feed the batches of samples that are this rank's, and compute."""
    whole = evaluation(31)
    directions = [(Modality.IMAGE, Modality.TEXT), (Modality.TEXT, Modality.IMAGE)]
    metrics = RetrievalMetrics(directions)
    for samples in shares[collectives.rank()]:
        here = [torch.isin(side.place, torch.tensor(samples, dtype=torch.int64)) for side in whole]
        metrics.update(
            Output(*(Embeddings(*(f[k] for f in side)) for side, k in zip(whole, here, strict=True)))
        )
    return metrics.compute(), metrics.embeddings(Modality.TEXT)


EVERYTHING = list(range(31))


@pytest.mark.parametrize(
    "shares",
    [
        [[EVERYTHING[0::4], EVERYTHING[1::4], EVERYTHING[2::4]], [EVERYTHING[3::4]]],
        [[[]], [EVERYTHING[20:], EVERYTHING[:20]]],
    ],
    ids=["uneven", "a rank without rows"],
)
def test_two_ranks_give_the_same_bits_as_one(ranks, shares: list[list[list[int]]]) -> None:
    values, text = compute_on_this_rank([[EVERYTHING]])
    for values_there, text_there in ranks(compute_on_this_rank, shares):
        assert values_there == values
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(text, text_there, strict=True))


def test_metrics_of_all_directions_leave_out_rows_that_take_no_part() -> None:
    whole = evaluation(31)
    values, text = compute_on_this_rank([[EVERYTHING[:7], EVERYTHING[7:]]])
    there = evaluate_direction(whole.image, whole.text)
    back = evaluate_direction(whole.text, whole.image)
    assert {name: values[f"image_to_text/{name}"] for name in Ranking._fields} == there._asdict()
    assert {name: values[f"text_to_image/{name}"] for name in Ranking._fields} == back._asdict()
    recalls = [there.r1, there.r5, there.r10, back.r1, back.r5, back.r10]
    assert values["mean_recall"] == pytest.approx(statistics.fmean(recalls))
    assert values["mean_recall_low"] < values["mean_recall"] < values["mean_recall_high"]
    intervals = ("r1_low", "r1_high", "r10_low", "r10_high")
    assert values.keys() - {"mean_recall", "mean_recall_low", "mean_recall_high"} == {
        f"{direction}/{name}"
        for direction in ("image_to_text", "text_to_image")
        for name in (*Ranking._fields, *intervals)
    }
    assert values["image_to_text/r10_low"] <= there.r10 <= values["image_to_text/r10_high"]
    assert NOBODY not in text.group
    assert text.place.tolist() == sorted(text.place.tolist())


def test_one_row_and_reset() -> None:
    metrics = RetrievalMetrics([(Modality.IMAGE, Modality.TEXT)])
    one = Output(rows(torch.ones(1, 1), [4]), rows(torch.ones(1, 1), [4]))
    metrics.update(one)
    assert metrics.compute()["image_to_text/r1"] == 1.0
    metrics.reset()
    metrics.update(Output(one.image, rows(torch.ones(1, 1), [NOBODY])))
    values = metrics.compute()
    assert values["image_to_text/left_out"] == 1
    assert math.isnan(values["mean_recall"])
