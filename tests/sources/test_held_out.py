"""Validation splits by hash: as many labels as wanted, none in two splits, the same ones every time."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmlab.sources.held_out import at_most_a_tenth, hold_out


@settings(deadline=None, max_examples=50)
@given(
    rows=st.lists(st.integers(0, 40), min_size=1),
    share=st.floats(0, 0.999),
    shuffle=st.randoms(use_true_random=False),
)
def test_labels_stay_together(rows: list[int], share: float, shuffle: object) -> None:
    number = int(share * len(set(rows)))
    parts = hold_out(rows, number, label=str, of="pictures")
    assert sorted(parts["train"] + parts["val"]) == sorted(rows)
    assert not set(parts["train"]) & set(parts["val"])
    assert len(set(parts["val"])) == number
    other = rows.copy()
    shuffle.shuffle(other)  # type: ignore[attr-defined]
    assert set(hold_out(other, number, label=str, of="pictures")["val"]) == set(parts["val"])


def test_more_rows_move_few() -> None:
    before = set(hold_out(range(1000), 100, label=str, of="pictures")["val"])
    after = set(hold_out(range(1010), 100, label=str, of="pictures")["val"])
    assert len(before & after) >= 90


def test_small_releases_give_up_a_tenth() -> None:
    assert len(at_most_a_tenth(range(50), 1000, label=str, of="pictures")["val"]) == 5
    assert len(at_most_a_tenth(range(50), 2, label=str, of="pictures")["val"]) == 2
    assert at_most_a_tenth([], 2, label=str, of="pictures") == {"train": [], "val": []}


@pytest.mark.parametrize("number", [-1, 3])
def test_numbers_that_cannot_be(number: int) -> None:
    with pytest.raises(ValueError, match=f"val is {number}: it takes from 0 to 2 of the 3 pictures"):
        hold_out("abca", number, label=str, of="pictures")
