"""Splits that share nothing."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from mmlab.sources.split import split

items = st.dictionaries(
    st.integers(0, 400).map(str),
    st.tuples(st.integers(0, 60).map(str), st.sets(st.integers(0, 200))),
    max_size=150,
)


@settings(max_examples=60, deadline=None)
@given(items=items, seed=st.integers(0, 5))
def test_no_label_and_no_mark_is_in_two_splits(items: dict[str, tuple[str, set[int]]], seed: int) -> None:
    labels = {key: label for key, (label, _) in items.items()}
    marks = {key: found for key, (_, found) in items.items()}
    splits = split(labels, marks=marks, held_out={"test": 5, "val": 3}, seed=seed)
    assert splits.keys() == items.keys()
    home: dict[object, str] = {}
    for key, name in splits.items():
        for mark in (("label", labels[key]), *(("mark", mark) for mark in marks[key])):
            assert home.setdefault(mark, name) == name
    for name, wanted in (("test", 5), ("val", 3)):
        assert len({labels[key] for key in splits if splits[key] == name}) <= wanted
    shuffled = list(items)
    random.Random(seed).shuffle(shuffled)
    again = split(
        {key: labels[key] for key in shuffled}, marks=marks, held_out={"test": 5, "val": 3}, seed=seed
    )
    assert again == splits


def numbered(count: int, seed: int = 0) -> dict[str, str]:
    labels = {f"item{i}": f"label{i // 2}" for i in range(count)}
    return split(labels, marks=dict.fromkeys(labels, ()), held_out={"test": 50, "val": 20}, seed=seed)


def test_numbers_of_labels_are_exact() -> None:
    splits = numbered(400)
    assert [list(splits.values()).count(name) for name in ("test", "val", "train")] == [100, 40, 260]


def test_another_seed_is_another_split() -> None:
    assert numbered(400, seed=1) != numbered(400)


def test_more_items_move_few_others() -> None:
    before, after = numbered(400), numbered(404)
    assert sum(after[key] != name for key, name in before.items()) <= 8


def test_what_is_joined_in_turn_stays_together() -> None:
    labels = {f"item{i}": f"label{i}" for i in range(100)}
    marks = {f"item{i}": {i, i + 1} for i in range(100)}  # a chain of all
    assert set(split(labels, marks=marks, held_out={"test": 10}, seed=0).values()) == {"train"}
