"""Diversity of answers, by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmlab.metrics.diversity import DiversityScores, distinct, repeated
from mmlab.metrics.text import Answered, AnswerScores, TextMetrics


def score(said: list[str]) -> dict[str, float]:
    return DiversityScores()([Answered(n, one, ("a",), str(n)) for n, one in enumerate(said)])


def test_different_words_and_pairs_are_counted_over_all_answers() -> None:
    found = score(["A dog runs.", "a dog sleeps", "a dog runs"])
    assert found == {
        "distinct_1": pytest.approx(4 / 9),  # a, dog, runs, sleeps
        "distinct_2": pytest.approx(3 / 9),  # over words, as the paper has it, not over pairs
        "mean_words": 3,
        "repeated": pytest.approx(2 / 3),
    }


def test_a_model_that_always_says_the_same_shows() -> None:
    found = score(["two people on a street"] * 50)
    assert found["distinct_1"] == pytest.approx(1 / 50)
    assert found["repeated"] == 1


def test_answers_without_words() -> None:
    assert score(["", "..."]) == {"distinct_1": 0, "distinct_2": 0, "mean_words": 0, "repeated": 1}
    assert score(["yes"]) == {"distinct_1": 1, "distinct_2": 0, "mean_words": 1, "repeated": 0}


@given(st.lists(st.lists(st.sampled_from("abc"), max_size=5), min_size=1, max_size=6))
def test_shares_are_shares_and_fall_when_all_is_said_again(said: list[list[str]]) -> None:
    for length in (1, 2):
        once = distinct(said, length=length)
        assert 0 <= once <= 1
        assert distinct(said + said, length=length) == pytest.approx(once / 2)
    assert 0 <= repeated(said) <= 1 == repeated(said + said)


def test_answers_need_no_references() -> None:
    metrics = TextMetrics([DiversityScores(), AnswerScores()])
    metrics.update([Answered(n, f"answer {n}", (), str(n)) for n in range(3)])
    assert metrics.compute() == {"distinct_1": 4 / 6, "distinct_2": 3 / 6, "mean_words": 2.0, "repeated": 0.0}
