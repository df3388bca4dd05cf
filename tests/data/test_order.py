"""The order of samples: what must hold for every count of shards, ranks, workers and lanes."""

from __future__ import annotations

import math
import pickle
import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mmlab.data.lanes import Lanes
from mmlab.data.order import EvaluationOrder, Places, TrainingOrder
from mmlab.data.randomness import draw_seed, permutation, random_words

quick = settings(max_examples=60, deadline=None)


@st.composite
def orders(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of orders small enough to walk through."""
    ranks = draw(st.sampled_from([1, 2, 3, 4, 6, 8]))
    groups = draw(st.sampled_from([1, 2, 3, 4]))
    counts = draw(st.lists(st.integers(0, 40), min_size=1, max_size=12))
    assume(sum(counts) >= ranks * groups)
    return {
        "counts": counts,
        "batch_size": ranks * draw(st.integers(1, 4)),
        "seed": draw(st.integers(0, 2**64)),
        "lanes": Lanes(ranks, groups),
        "unit": draw(st.sampled_from(["sample", "shard"])),
        "window": draw(st.sampled_from([1, 3, 8, 1000])),
    }


def names(places: Places) -> list[tuple[int, int]]:
    return list(zip(places.shard.tolist(), places.sample.tolist(), strict=True))


def divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def lane_draws(order: TrainingOrder, epochs: int) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """What each lane draws in its first epochs, collected from the batches."""
    ranks, groups = order.lanes.ranks, order.lanes.groups
    share = order.batch_size // ranks
    turns = math.ceil(epochs * order.draws.lane_samples / share)
    drawn: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for step in range(turns * groups):
        batch = names(order.places(step))
        for rank in range(ranks):
            lane = drawn.setdefault((rank, step % groups), [])
            lane += batch[rank * share : (rank + 1) * share]
    return drawn


@quick
@given(orders())
def test_each_sample_at_most_once_an_epoch_and_few_missing(arguments: dict[str, Any]) -> None:
    order = TrainingOrder(**arguments)
    drawn = lane_draws(order, epochs=2)
    length = order.draws.lane_samples
    for epoch in range(2):
        seen = [s for lane in drawn.values() for s in lane[epoch * length : (epoch + 1) * length]]
        assert len(set(seen)) == len(seen) == order.lanes.count * length
        assert order.samples - len(seen) < order.lanes.count
        assert all(0 <= sample < order.draws.counts[shard] for shard, sample in seen)


@quick
@given(orders(), st.integers(0, 10_000), st.data())
def test_global_batch_is_the_same_on_any_number_of_ranks(
    arguments: dict[str, Any], step: int, data: st.DataObject
) -> None:
    order = TrainingOrder(**arguments)
    whole = order.places(step)
    ranks = data.draw(st.sampled_from(divisors(order.lanes.ranks)))
    order.check(ranks, 1)
    shares = [order.places(step, rank=rank, ranks=ranks) for rank in range(ranks)]
    assert len({len(share.place) for share in shares}) == 1
    for whole_column, *parts in zip(whole, *shares, strict=True):
        np.testing.assert_array_equal(np.concatenate(parts), whole_column)
    np.testing.assert_array_equal(whole.place, step * order.batch_size + np.arange(order.batch_size))


@quick
@given(orders(), st.lists(st.integers(0, 10_000), min_size=1, max_size=8))
def test_a_step_does_not_depend_on_what_was_asked_before(arguments: dict[str, Any], steps: list[int]) -> None:
    order = TrainingOrder(**arguments)
    fresh = [names(pickle.loads(pickle.dumps(order)).places(step)) for step in steps]
    assert [names(order.places(step)) for step in steps] == fresh
    assert [names(order.places(step)) for step in reversed(steps)] == fresh[::-1]


@quick
@given(orders(), st.data())
def test_a_worker_touches_only_its_lane_groups(arguments: dict[str, Any], data: st.DataObject) -> None:
    order = TrainingOrder(**arguments)
    workers = data.draw(st.sampled_from(divisors(order.lanes.groups)))
    order.check(1, workers)
    length = order.draws.lane_samples
    # Steps that draw from the first epoch alone.
    steps = range(length * order.lanes.ranks // order.batch_size * order.lanes.groups)
    seen = [
        {name for step in steps if step % workers == worker for name in names(order.places(step))}
        for worker in range(workers)
    ]
    assert sum(map(len, seen)) == len(set().union(*seen))


@pytest.mark.parametrize("unit", ["sample", "shard"])
def test_what_is_left_out_changes_from_epoch_to_epoch(unit: str) -> None:
    order = TrainingOrder([100, 3], batch_size=8, seed=1, lanes=Lanes(8, 2), unit=unit)  # type: ignore[arg-type]
    drawn = lane_draws(order, epochs=40)
    everything = {(0, i) for i in range(100)} | {(1, i) for i in range(3)}
    length = order.draws.lane_samples
    missing = [
        frozenset(everything - {s for lane in drawn.values() for s in lane[e * length : (e + 1) * length]})
        for e in range(40)
    ]
    assert all(len(m) == 103 % 16 for m in missing)
    assert len(set(missing)) > 20


@pytest.mark.parametrize("unit", ["sample", "shard"])
def test_epochs_are_shuffled_and_differ(unit: str) -> None:
    counts = [100] * 40
    order = TrainingOrder(counts, batch_size=32, seed=3, unit=unit)  # type: ignore[arg-type]
    first = [name for step in range(order.steps) for name in names(order.places(step))]
    second = [name for step in range(order.steps, 2 * order.steps) for name in names(order.places(step))]
    assert first != second
    other = TrainingOrder(counts, batch_size=32, seed=4, unit=unit)  # type: ignore[arg-type]
    assert first != [name for step in range(order.steps) for name in names(other.places(step))]
    number = np.array([shard * 100 + sample for shard, sample in first])
    # Neighbours in a batch are strangers: hardly ever neighbours in storage.
    assert np.mean(np.abs(np.diff(number)) == 1) < 0.05
    # The standard deviation of a correlation of n pairs is n ** -0.5; whole shards count as one pair.
    pairs = len(number) if unit == "sample" else len(counts)
    assert abs(np.corrcoef(number, np.arange(len(number)))[0, 1]) < 4 * pairs**-0.5


def test_a_perfect_shuffle_spreads_a_sorted_set_over_every_batch() -> None:
    # Ten classes, stored one after the other; 64 draws with replacement see about 9.99 of them.
    order = TrainingOrder([1000] * 10, batch_size=64, seed=0)
    assert order.draws.unit == "sample"
    classes = [len(set(order.places(step).shard.tolist())) for step in range(order.steps)]
    assert np.mean(classes) > 9.9


def test_windows_mix_a_sorted_shard() -> None:
    order = TrainingOrder([5000], batch_size=8, seed=0, lanes=Lanes(1, 1), unit="shard", window=1000)
    first = np.concatenate([order.places(step).sample for step in range(125)])
    assert len(set(((first - first.min()) % 5000 // 100).tolist())) >= 10
    assert not np.array_equal(first, np.sort(first))


def test_windows_have_equal_length() -> None:
    order = TrainingOrder([1001], batch_size=1, seed=0, lanes=Lanes(1, 1), unit="shard", window=1000)
    assert order.draws.window == 501


def test_auto_unit_follows_the_sample_count() -> None:
    assert TrainingOrder([2**20], batch_size=8, seed=0).draws.unit == "sample"
    assert TrainingOrder([2**20, 1], batch_size=8, seed=0).draws.unit == "shard"


def test_steps_are_rounded_and_at_least_one() -> None:
    assert TrainingOrder([100], batch_size=32, seed=0).steps == 3
    assert TrainingOrder([5], batch_size=8, seed=0).steps == 1


@quick
@given(st.integers(1, 10**9), st.integers(1, 4096))
def test_chosen_lanes_fit(samples: int, batch_size: int) -> None:
    lanes = Lanes.choose(samples, batch_size)
    assert batch_size % lanes.ranks == 0
    assert lanes.count <= max(1, samples // 32)


@quick
@given(st.integers(1, 10**9), st.integers(1, 512), st.integers(1, 64))
def test_chosen_lanes_suit_the_ranks_that_a_run_begins_with(
    samples: int, batch_size: int, ranks: int
) -> None:
    usual, lanes = Lanes.choose(samples, batch_size), Lanes.choose(samples, batch_size, ranks=ranks)
    if usual.ranks % ranks == 0 or batch_size % ranks != 0:
        assert lanes == usual
    else:
        assert lanes == Lanes(ranks, usual.groups)
    assert Lanes.read(lanes.text) == lanes


def test_chosen_lanes_suit_usual_machines() -> None:
    assert Lanes.choose(10**6, 256) == Lanes(64, 8)
    assert Lanes.choose(10**6, 384).ranks % 6 == 0
    assert Lanes.choose(10**6, 100).ranks % 4 == 0
    assert Lanes.choose(4 * 10**8, 32_768) == Lanes(1024, 8)
    assert Lanes.choose(800, 32) == Lanes(4, 4)


@pytest.mark.parametrize(
    ("ranks", "workers", "said"),
    [
        (3, 0, r"^3 ranks: must divide lanes.ranks = 8; the nearest valid values are 2 and 4$"),
        (16, 0, r"^16 ranks: must divide lanes.ranks = 8; the nearest valid value is 8$"),
        (5, 0, r"^batch size 48: must be divisible by the 5 ranks; the nearest valid values are 45 and 50$"),
        (96, 0, r"^batch size 48: must be divisible by the 96 ranks; the nearest valid value is 96$"),
        (2, 3, r"^3 workers \(num_workers\): must divide lanes.groups = 4; .* are 2 and 4$"),
    ],
)
def test_check_names_the_nearest_valid_values(ranks: int, workers: int, said: str) -> None:
    order = TrainingOrder([1000], batch_size=48, seed=0, lanes=Lanes(8, 4))
    with pytest.raises(ValueError, match=said):
        order.check(ranks, workers)


def test_no_workers_count_as_one() -> None:
    TrainingOrder([1000], batch_size=8, seed=0, lanes=Lanes(8, 1)).check(8, 0)


def test_lanes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must divide batch_size = 10; .* 2 and 5"):
        TrainingOrder([100], batch_size=10, seed=0, lanes=Lanes(4, 1))
    with pytest.raises(ValueError, match="cannot fill 8 x 4 lanes"):
        TrainingOrder([31], batch_size=8, seed=0, lanes=Lanes(8, 4))
    with pytest.raises(ValueError, match="at least 1"):
        Lanes(0, 1)


@quick
@given(st.lists(st.integers(0, 20), min_size=1, max_size=10), st.integers(1, 6), st.sampled_from([1, 2, 3]))
def test_evaluation_covers_every_sample_once_in_stored_order(
    counts: list[int], share: int, ranks: int
) -> None:
    order = EvaluationOrder(counts, batch_size=share * ranks)
    order.check(ranks, 7)
    assert order.steps == math.ceil(sum(counts) / (share * ranks))
    batches = [
        order.places(step, rank=rank, ranks=ranks) for step in range(order.steps) for rank in range(ranks)
    ]
    assert all(len(batch.place) == share for batch in batches)
    seen = [name for batch in batches for name in names(batch)]
    padding = order.steps * share * ranks - sum(counts)
    stored = [(shard, sample) for shard, count in enumerate(counts) for sample in range(count)]
    assert seen == stored + [(-1, -1)] * padding
    assert np.concatenate([b.place for b in batches] or [[]]).tolist() == list(range(len(seen)))


def test_evaluation_batch_must_be_shared_evenly() -> None:
    with pytest.raises(ValueError, match=r"10 of evaluation: must be divisible by the 4 ranks; .* 8 and 12"):
        EvaluationOrder([10], batch_size=10).check(4, 0)


def test_random_words_are_those_of_splitmix64() -> None:
    # The reference, in Python's integers (Vigna, splitmix64.c), from the state that the words began with.
    mask = 2**64 - 1

    def reference(state: int) -> int:
        word = state & mask
        word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & mask
        word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & mask
        return word ^ (word >> 31)

    golden = 0x9E3779B97F4A7C15
    state = reference((0 ^ 5) + golden)
    state = reference(((state ^ 7) + golden) & mask)
    expected = [reference(state + golden * (i + 1)) for i in range(100)]
    assert random_words(100, 5, 7).tolist() == expected


def test_numbers_never_change() -> None:
    # A run that resumes on another release must go on with the same samples: these may never be edited.
    assert permutation(10, 1, 2).tolist() == [2, 9, 8, 7, 3, 1, 5, 6, 0, 4]
    assert draw_seed(1, 2) == 3647617934238093223
    order = TrainingOrder([20, 30, 50], batch_size=4, seed=7, lanes=Lanes(2, 2), unit="shard", window=10)
    assert names(order.places(5)) == [(2, 8), (2, 6), (0, 9), (0, 5)]
    order = TrainingOrder([20, 30, 50], batch_size=4, seed=7, lanes=Lanes(2, 2), unit="sample")
    assert names(order.places(5)) == [(1, 6), (0, 1), (1, 10), (0, 14)]


def test_random_words_are_uniform_and_distinct() -> None:
    words = random_words(100_000, 1)
    assert len(np.unique(words)) == len(words)
    counts = np.histogram(words.astype(np.float64), bins=100, range=(0, 2.0**64))[0]
    assert 50 < ((counts - 1000) ** 2 / 1000).sum() < 160  # chi-square with 99 degrees of freedom
    firsts = [int(permutation(10, 1, seed)[0]) for seed in range(2000)]
    assert np.bincount(firsts, minlength=10).min() > 140


def test_draw_seeds_differ_by_seed_and_place() -> None:
    seeds = {draw_seed(seed, place) for seed in range(30) for place in range(1000)}
    assert len(seeds) == 30_000
    first = [random.Random(draw_seed(0, place)).random() for place in range(2000)]
    assert abs(np.mean(first) - 0.5) < 0.03


def test_a_million_shards_are_planned_quickly_in_little_memory() -> None:
    script = """
import resource, time
import numpy as np
from mmlab.data.lanes import Lanes
from mmlab.data.order import TrainingOrder
TrainingOrder([100], batch_size=1, seed=0).places(0)
counts = np.full(10**6, 10**4)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.process_time()
order = TrainingOrder(counts, batch_size=32_768, seed=1, lanes=Lanes(1024, 8))
order.places(123_456, rank=77, ranks=1024)
planning = time.process_time() - start
start = time.process_time()
for turn in range(100):
    order.places(123_456 + 8 * turn, rank=77, ranks=1024)
batch = (time.process_time() - start) / 100
print(planning, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, batch)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    planning, megabytes, batch = map(float, done.stdout.split())
    assert planning < 2
    assert megabytes < 300
    assert batch < 2e-3


def test_order_imports_no_torch() -> None:
    script = (
        "import sys, mmlab.data.order, mmlab.data.shards, mmlab.data.check; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
