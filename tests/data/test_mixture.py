"""Mixtures: shares, exactness, and that the order follows from the step alone."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmlab.data.lanes import LaneDraws, Lanes, Subset
from mmlab.data.mixture import Ingredient, MixedOrder, Rota
from mmlab.data.parts import Mixture, Part

quick = settings(max_examples=60, deadline=None)


@st.composite
def mixtures(draw: st.DrawFn) -> dict[str, Any]:
    """Settings of mixed orders small enough to walk through."""
    lanes = Lanes(draw(st.sampled_from([1, 2, 4, 6])), draw(st.sampled_from([1, 2, 3])))
    per = draw(st.sampled_from(["sample", "batch"]))
    size = st.integers(1, 4).map(lambda share: share * lanes.ranks)
    common = draw(size)
    sources = [
        {
            "counts": draw(st.lists(st.integers(1, 30), min_size=1, max_size=4)),
            "share": draw(st.floats(0.02, 1)),
            "batch_size": common if per == "sample" else draw(size),
        }
        for _ in range(draw(st.integers(1, 4)))
    ]
    return {"sources": sources, "lanes": lanes, "per": per, "seed": draw(st.integers(0, 2**64))}


def build(
    sources: list[dict[str, Any]], *, lanes: Lanes, per: Any, seed: int, unit: Any = "auto"
) -> MixedOrder:
    ingredients, first = [], 0
    for number, source in enumerate(sources):
        copies = -(-4 * lanes.count // sum(source["counts"]))
        draws = LaneDraws(source["counts"], seed=number, lanes=lanes, unit=unit, window=5, copies=copies)
        ingredients.append(Ingredient(f"s{number}", draws, source["share"], source["batch_size"], first))
        first += len(source["counts"])
    return MixedOrder(ingredients, lanes=lanes, seed=seed, per=per)


def names(order: MixedOrder, step: int, rank: int = 0, ranks: int = 1) -> list[tuple[int, ...]]:
    return list(zip(*(values.tolist() for values in order.places(step, rank=rank, ranks=ranks)), strict=True))


@quick
@given(mixtures(), st.integers(0, 10**6), st.sampled_from(["sample", "shard"]))
def test_global_batch_is_the_same_on_any_number_of_ranks_and_needs_no_past(
    arguments: dict[str, Any], step: int, unit: str
) -> None:
    walked = build(**arguments, unit=unit)
    for before in range(max(0, step - 3), step):
        walked.places(before)
    whole = names(walked, step)
    for ranks in [n for n in range(1, 7) if walked.lanes.ranks % n == 0]:
        fresh = build(**arguments, unit=unit)
        shares = [names(fresh, step, rank, ranks) for rank in range(ranks)]
        assert len({len(share) for share in shares}) == 1
        assert [sample for share in shares for sample in share] == whole


@quick
@given(mixtures())
def test_each_lane_draws_the_samples_of_each_source_one_after_the_other(arguments: dict[str, Any]) -> None:
    order = build(**arguments)
    drawn: dict[tuple[str, int], list[int]] = defaultdict(list)
    for ingredient in order.ingredients:
        original = ingredient.draws.draw

        def noting(
            lane: np.ndarray, number: np.ndarray, name: str = ingredient.name, to: Any = original
        ) -> Any:
            for one_lane, one_number in zip(lane.tolist(), number.tolist(), strict=True):
                drawn[name, one_lane].append(one_number)
            return to(lane, number)

        ingredient.draws.draw = noting  # type: ignore[method-assign]
    for step in range(60 * order.lanes.groups):
        order.places(step)
    for numbers in drawn.values():
        assert numbers == list(range(len(numbers)))


@quick
@given(mixtures())
def test_places_are_distinct_and_of_their_step(arguments: dict[str, Any]) -> None:
    order = build(**arguments)
    for step in (0, 1, 17):
        places = [place for _, _, place in names(order, step)]
        assert len(set(places)) == len(places)
        assert {place // order.batch_size for place in places} == {step}


@pytest.mark.parametrize("per", ["sample", "batch"])
def test_shares_are_met_and_small_sources_repeat_evenly(per: Any) -> None:
    sources = [
        {"counts": [500, 500], "share": 0.5, "batch_size": 64},
        {"counts": [3000], "share": 0.4, "batch_size": 64},
        {"counts": [10, 9], "share": 0.1, "batch_size": 64},
    ]
    order = build(sources, lanes=Lanes(8, 4), per=per, seed=3)
    steps = 400
    seen = Counter((shard, sample) for step in range(steps) for shard, sample, _ in names(order, step))
    drawn = np.zeros(3)
    for (shard, _), count in seen.items():
        drawn[[0, 0, 1, 2, 2][shard]] += count
    assert drawn / steps / 64 == pytest.approx([0.5, 0.4, 0.1], abs=0.005)
    for shards, samples in (((0, 1), 1000), ((2,), 3000), ((3, 4), 19)):
        counts = [count for (shard, _), count in seen.items() if shard in shards]
        assert len(counts) == samples
        # Each comes once in every epoch of its source, but for a few that sit one out by rounding.
        assert max(counts) - min(counts) <= max(3, 0.2 * np.mean(counts))


def test_every_batch_mixed_per_sample_holds_nearly_the_shares() -> None:
    sources = [{"counts": [999], "share": share, "batch_size": 256} for share in (0.6, 0.3, 0.1)]
    order = build(sources, lanes=Lanes(16, 2), per="sample", seed=0)
    counts = np.array([np.bincount(order.places(step).shard, minlength=3) for step in range(200)])
    assert counts.mean(axis=0) == pytest.approx([153.6, 76.8, 25.6], abs=0.5)
    # Samples drawn by chance (multinomial) would vary by 7.8, 7.3 and 4.8.
    assert (counts.std(axis=0) < [4, 4, 4]).all()


@quick
@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=300), st.integers(0, 2**64))
def test_rota_counts_its_own_turns(shares: list[float], seed: int) -> None:
    rota = Rota(shares, seed=seed)
    owner, number = rota.at(np.arange(2**16 + 50))
    for ingredient in (0, len(shares) - 1):
        mine = number[owner == ingredient]
        assert mine.tolist() == list(range(len(mine)))
    assert rota.counts.sum() == 2**16
    assert rota.counts.min() >= 1
    before = rota.before(np.array([0, 777]))
    assert before[0].tolist() == [0] * len(shares)
    assert before[1].tolist() == [int((owner[:777] == i).sum()) for i in range(len(shares))]
    exact = np.array(shares) / sum(shares) * 2**16
    if exact.min() >= 1:
        assert np.abs(rota.counts - exact).max() < 1


@quick
@given(st.lists(st.integers(0, 20), min_size=1, max_size=6).filter(lambda counts: sum(counts) > 0), st.data())
def test_subset_finds_its_samples(counts: list[int], data: st.DataObject) -> None:
    total = sum(counts)
    numbers = np.array(sorted(data.draw(st.sets(st.integers(0, total - 1), min_size=1))))
    subset = Subset(numbers, np.concatenate([[0], np.cumsum(counts)]))
    found = [
        int(subset.starts[shard]) + int(subset.sample(np.array([shard]), np.array([n]))[0])
        for shard, count in enumerate(subset.counts)
        for n in range(count)
    ]
    assert found == numbers.tolist()


def test_weights_by_size_temperature_and_hand() -> None:
    counts = {"large": 10_000, "small": 100}
    parts = {"large": Part(), "small": Part()}
    assert Mixture(parts).shares(counts) == {"large": 10_000, "small": 100}
    assert Mixture(parts, temperature=2.0).shares(counts) == pytest.approx({"large": 100, "small": 10})
    given_weights = Mixture({"large": Part(weight=1.0), "small": Part(weight=3.0)})
    assert given_weights.shares(counts) == {"large": 1, "small": 3}


def test_wrong_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="'small' of the mixture has no weight"):
        Mixture({"large": Part(weight=1.0), "small": Part()}).shares({"large": 1, "small": 1})
    with pytest.raises(ValueError, match="must be above 0"):
        Mixture({"large": Part(weight=0.0)}).shares({"large": 1})
    with pytest.raises(ValueError, match="temperature 0"):
        Mixture({"large": Part()}, temperature=0.0)
    with pytest.raises(ValueError, match="needs parts"):
        Mixture({})
