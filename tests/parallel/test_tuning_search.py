"""The search for a part of a batch, on machines whose memory is known."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from mmlab.parallel.tuning import Trial, best, search


class Machine:
    """Holds some samples; its speed rises with the part until it is busy."""

    def __init__(self, holds: int, *, busy: int = 1) -> None:
        self.holds, self.busy = holds, busy
        self.asked: list[int] = []

    def __call__(self, samples: int) -> Trial | None:
        self.asked.append(samples)
        if samples > self.holds:
            return None
        return Trial(samples, 100 * samples, 1000.0 * min(1, samples / self.busy))


@settings(max_examples=200, deadline=None)
@given(total=st.integers(1, 5000), holds=st.integers(0, 6000))
def test_the_largest_part_is_found(total: int, holds: int) -> None:
    machine = Machine(holds)
    tried = search(total, machine)
    fitting = [samples for samples, trial in tried.items() if trial is not None]
    assert len(machine.asked) == len(set(machine.asked)) <= 3 * (math.log2(total) + 2)
    if holds == 0:
        assert not fitting
        return
    parts = math.ceil(total / max(fitting))
    if parts > 1:  # one part less does not fit, or is hardly larger
        assert (
            (larger := math.ceil(total / (parts - 1))) > holds or larger / max(fitting) < 1.25 or parts > 10
        )
        assert min(fitting) < max(fitting) or max(fitting) == 1
    else:
        assert machine.asked == [total]


def test_a_batch_that_fits_whole_is_not_cut() -> None:
    assert search(64, machine := Machine(64)) == {64: Trial(64, 6400, 1000.0)}
    assert machine.asked == [64]


def test_of_parts_as_fast_the_smallest_is_chosen() -> None:
    tried = search(1024, Machine(300, busy=128))
    assert [samples for samples, trial in tried.items() if trial is None] == [1024, 512, 342]
    chosen = best(tried)
    assert chosen is not None
    assert chosen.samples == 128


def test_where_nothing_fits_nothing_is_chosen() -> None:
    tried = search(5, Machine(0))
    assert list(tried) == [5, 3, 2, 1]
    assert best(tried) is None
