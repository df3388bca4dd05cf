"""Retrieval metrics from the ranks of relevant items, tile by tile: R@k, MRR, nDCG, mAP, median rank.

A candidate is relevant to a query if their groups are equal; there may be several (the five captions of an
image in COCO and Flickr30k). Everything derives from one number per relevant candidate:

    rank of the j-th best relevant candidate = j + number of others whose score is not below its score.

Ties thus count against the model: a result depends on no order, and a model that maps everything to one
point comes last instead of first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64, Shaped
from torch import Tensor

from mmlab.batch import NOBODY, Embeddings

TILE = 2**22
"""Scores held at a time: 16 MiB in float32, and as much again to count in."""
RECALL_AT = (1, 5, 10)
NDCG_DEPTH = 10
FEW = 16
"""Up to here a pass over the scores for each relevant candidate is faster than a search."""


class RelevantRanks(NamedTuple):
    """What the metrics derive from, for each query that has a relevant candidate, in the order given."""

    first: Int64[Tensor, " queries"]
    """Rank of the best relevant candidate, from 1."""
    average_precision: Float64[Tensor, " queries"]
    ndcg10: Float64[Tensor, " queries"]
    relevant: Int64[Tensor, " queries"]
    """Number of relevant candidates."""
    group: Int64[Tensor, " queries"]
    candidates: int
    """Number of candidates ranked."""
    left_out: int
    """Queries without any relevant candidate."""


class Ranking(NamedTuple):
    """Metrics of one direction as plain numbers, NaN where no query has a relevant candidate."""

    r1: float
    """Share of queries with a relevant candidate at rank 1."""
    r5: float
    r10: float
    mrr: float
    """Mean of 1 / rank of the best relevant candidate."""
    ndcg10: float
    """Binary gain, discount 1 / log2(1 + rank), over the ten best ranks."""
    map: float
    """Mean average precision over the whole ranking."""
    median_rank: float
    """Of the best relevant candidate; the mean of the two middle ones for an even number of queries."""
    chance_r1: float
    """Expectation of `r1` if the same candidates were ranked at random."""
    chance_r5: float
    chance_r10: float
    chance_mrr: float
    chance_median_rank: float
    """Median of the best relevant candidate's rank over queries and random rankings."""
    queries: int
    candidates: int
    left_out: int
    """Queries without any relevant candidate; no other number counts them."""


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


@torch.no_grad()
def rank_relevant(queries: Embeddings, candidates: Embeddings) -> RelevantRanks:
    """Rank all candidates for every query by dot product, and say where the relevant ones stand.

    Scores are computed in at least float32 for some queries at a time, so the memory beside the embeddings
    is that of a tile, or of one query's scores if that is more. Scores closer than eight units of rounding
    are ties: matrix products of identical vectors differ by up to five, depending on the column.

    Args:
        queries: Unit vectors; rows of group NOBODY are ignored. Numbers that are not finite count as 0.
        candidates: Unit vectors of the other modality, on the same device.
    """
    query_vector, query_group = _valid(queries)
    vector, group = _valid(candidates)
    assert len(group) < 2**24, "float32 cannot count further"
    by_group = group.argsort(stable=True)
    vector, group = vector[by_group], group[by_group]
    start = torch.searchsorted(group, query_group)
    relevant = torch.searchsorted(group, query_group, right=True) - start
    answerable = (relevant > 0).nonzero().flatten()
    # Queries with about as many relevant candidates share a tile, so that little of it is padding.
    order = answerable[relevant[answerable].argsort(stable=True)]

    first = torch.zeros_like(relevant)
    precision = torch.zeros_like(relevant, dtype=torch.float64)
    ndcg = torch.zeros_like(precision)
    height = max(1, TILE // max(1, len(group)))
    for top in range(0, len(order), height):
        rows = order[top : top + height]
        scores = query_vector[rows] @ vector.T
        ranks = _ranks_in_tile(scores, start[rows], relevant[rows])
        first[rows] = ranks[:, 0]
        precision[rows] = _average_precision(ranks, relevant[rows])
        ndcg[rows] = _ndcg(ranks, relevant[rows])
    return RelevantRanks(
        first=first[answerable],
        average_precision=precision[answerable],
        ndcg10=ndcg[answerable],
        relevant=relevant[answerable],
        group=query_group[answerable],
        candidates=len(group),
        left_out=len(query_group) - len(answerable),
    )


def evaluate_direction(queries: Embeddings, candidates: Embeddings) -> Ranking:
    """Metrics of searching the candidates with every query; see :func:`rank_relevant`."""
    return summarize(rank_relevant(queries, candidates))


def summarize(ranks: RelevantRanks) -> Ranking:
    """Average over queries, and set the level of chance beside it."""
    queries, candidates = len(ranks.first), ranks.candidates
    if queries == 0:
        return Ranking._make([*[float("nan")] * 12, 0, candidates, ranks.left_out])
    first = ranks.first.double().cpu()
    ordered = first.sort().values
    none_within = _chance_of_none(ranks.relevant.cpu(), candidates)
    every_rank = torch.arange(1, candidates + 1, dtype=torch.float64)
    recall = [(first <= k).double().mean().item() for k in RECALL_AT]
    chance = [1 - none_within[min(k, candidates)].item() for k in RECALL_AT]
    return Ranking(
        r1=recall[0],
        r5=recall[1],
        r10=recall[2],
        mrr=(1 / first).mean().item(),
        ndcg10=ranks.ndcg10.mean().item(),
        map=ranks.average_precision.mean().item(),
        median_rank=(ordered[(queries - 1) // 2] + ordered[queries // 2]).item() / 2,
        chance_r1=chance[0],
        chance_r5=chance[1],
        chance_r10=chance[2],
        chance_mrr=((none_within[:-1] - none_within[1:]) / every_rank).sum().item(),
        chance_median_rank=_median(none_within),
        queries=queries,
        candidates=candidates,
        left_out=ranks.left_out,
    )


def _valid(rows: Embeddings) -> tuple[Float[Tensor, "valid dim"], Int64[Tensor, " valid"]]:
    """The rows that take part, in at least float32."""
    keep = rows.group != NOBODY
    vector = rows.vector[keep].to(torch.promote_types(rows.vector.dtype, torch.float32))
    # A model that diverged gets zeros, hence ties, hence the last ranks. NaN would compare as below anything.
    return vector.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0), rows.group[keep]


def _ranks_in_tile(
    scores: Float[Tensor, "queries candidates"],
    start: Int64[Tensor, " queries"],
    relevant: Int64[Tensor, " queries"],
) -> Int64[Tensor, "queries most"]:
    """Ranks of the relevant candidates, ascending; what lies beyond a query's number of them is arbitrary.

    Args:
        scores: Higher is better.
        start: First column of the query's relevant candidates, which stand side by side.
        relevant: How many there are, at least 1.
    """
    slot = torch.arange(int(relevant.max()), device=scores.device)
    columns = (start[:, None] + slot).clamp(max=scores.shape[1] - 1)
    best = scores.gather(1, columns).masked_fill(slot >= relevant[:, None], -torch.inf)
    best = best.sort(dim=1, descending=True).values
    threshold = best - 8 * torch.finfo(scores.dtype).eps
    others = _count_not_below(scores, threshold) - _count_not_below(best, threshold)
    return 1 + slot + others


def _count_not_below(
    scores: Float[Tensor, "queries candidates"], threshold: Float[Tensor, "queries most"]
) -> Int64[Tensor, "queries most"]:
    """How many scores of the row are at least each of its thresholds, which descend."""
    most = threshold.shape[1]
    if most <= FEW:
        above = torch.empty_like(scores)
        # Comparing into floats and summing those is several times faster than summing booleans.
        counts = [torch.ge(scores, threshold[:, j, None], out=above).sum(dim=1) for j in range(most)]
        return torch.stack(counts, dim=1).long()
    reached = torch.searchsorted(-threshold, -scores, out_int32=True)
    row = torch.arange(len(scores), device=scores.device)[:, None] * (most + 1)
    reached_first = torch.bincount((reached + row).flatten(), minlength=len(scores) * (most + 1))
    return reached_first.view(len(scores), most + 1)[:, :most].cumsum(dim=1)


def _average_precision(
    ranks: Int64[Tensor, "queries most"], relevant: Int64[Tensor, " queries"]
) -> Float64[Tensor, " queries"]:
    """Mean over the relevant candidates of j / rank of the j-th best."""
    number = 1 + torch.arange(ranks.shape[1], device=ranks.device)
    precision = number.double() / ranks
    return precision.masked_fill(number > relevant[:, None], 0.0).sum(dim=1) / relevant


def _ndcg(
    ranks: Int64[Tensor, "queries most"], relevant: Int64[Tensor, " queries"]
) -> Float64[Tensor, " queries"]:
    """Discounted gain of the relevant candidates within the depth, over that of a perfect ranking."""
    number = 1 + torch.arange(ranks.shape[1], device=ranks.device)
    exists = number <= relevant[:, None]
    gained = _discount(ranks, exists & (ranks <= NDCG_DEPTH))
    possible = _discount(number.expand_as(ranks), exists & (number <= NDCG_DEPTH))
    return gained / possible


def _discount(
    ranks: Int64[Tensor, "queries most"], counted: Bool[Tensor, "queries most"]
) -> Float64[Tensor, " queries"]:
    """Sum of 1 / log2(1 + rank) over the ranks that count."""
    return (1 / (1 + ranks.double()).log2()).masked_fill(~counted, 0.0).sum(dim=1)


def _chance_of_none(relevant: Int64[Tensor, " queries"], candidates: int) -> Float64[Tensor, " depths"]:
    """Chance that a random ranking has no relevant candidate among the best t, for t = 0 to all.

    With n of N candidates relevant it is binom(N - n, t) / binom(N, t), the product over i < t of
    (N - n - i) / (N - i); the mean over queries is returned.
    """
    left = torch.arange(candidates, 0, -1, dtype=torch.float64)
    mean = torch.zeros(candidates + 1, dtype=torch.float64)
    numbers, counts = torch.unique(relevant, return_counts=True)
    for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
        survival = ((left - number).clamp(min=0) / left).cumprod(dim=0)
        mean += torch.cat([torch.ones(1, dtype=torch.float64), survival]) * count
    return mean / len(relevant)


def _median(none_within: Float64[Tensor, " depths"]) -> float:
    """Middle of the ranks r with P(first <= r) >= 1/2 and P(first >= r) >= 1/2; P(first > t) is given."""
    rounding = 1e-9
    lowest = (none_within > 0.5 + rounding).sum()
    highest = (none_within >= 0.5 - rounding).sum()
    return (lowest + highest).item() / 2


class Scores(NamedTuple):
    """One number for each query of one kind, and which queries belong together."""

    value: Shaped[Tensor, " queries"]
    group: Int64[Tensor, " queries"]


def bootstrap_interval(
    scores: Sequence[Scores], *, seed: int, draws: int = 1000, level: float = 0.95
) -> Interval:
    """Percentile interval of the mean over kinds of the mean over queries, resampling groups of queries.

    The five captions of one picture are found or missed together, and so are they in both directions;
    resampling them one by one would give an interval that is too narrow (cluster bootstrap: Field and Welsh
    2007).

    Args:
        scores: Of one kind, such as `Scores(ranks.first <= 10, ranks.group)`, or of several directions. A
            group is the same in all of them.
        seed: Of the draws.
        draws: Number of resamples.
        level: Share of resampled means inside.

    Raises:
        ValueError: If there is no value.
    """
    if len(scores) == 0 or any(len(kind.value) == 0 for kind in scores):
        raise ValueError("no query to resample: an interval needs at least one")
    groups = torch.unique(torch.cat([kind.group.cpu() for kind in scores]))
    sums = torch.zeros(len(scores), len(groups), dtype=torch.float64)
    sizes = torch.zeros_like(sums)
    for number, kind in enumerate(scores):
        member = torch.searchsorted(groups, kind.group.cpu())
        sums[number].index_add_(0, member, kind.value.cpu().double())
        sizes[number].index_add_(0, member, torch.ones(len(member), dtype=torch.float64))
    generator = torch.Generator().manual_seed(seed)
    means = torch.empty(draws, dtype=torch.float64)
    for draw in range(draws):
        drawn = torch.randint(len(groups), (len(groups),), generator=generator)
        # A kind without any query among the groups drawn has no mean; the others stand for it.
        means[draw] = (sums[:, drawn].sum(dim=1) / sizes[:, drawn].sum(dim=1)).nanmean()
    tail = (1 - level) / 2
    low, high = means.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Interval(low, high)
