"""Scores of what was said: by hand, over ranks, and by group."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmlab import collectives
from mmlab.metrics.perplexity import Perplexity
from mmlab.metrics.text import (
    Answered,
    AnswerScores,
    ChoiceScores,
    StatementScores,
    TextMetrics,
    exact_match,
    normal_answer,
    token_f1,
)  # fmt: skip

SAID = ["a red car", "Yes.", "two", "blue", "no", "the dog"]
RIGHT = [("red car",), ("yes", "yeah"), ("three",), ("blue", "navy"), ("yes",), ("a dog runs",)]
LOSS = [0.0, 0.1, 7.3, 2.2, 0.7, 1e-9]
"""Of as many tokens as the number of the answer."""


def metrics_of(numbers: list[int]) -> TextMetrics:
    metrics = TextMetrics([AnswerScores(), Perplexity()])
    metrics.update([Answered(n, SAID[n], RIGHT[n], str(n), loss=LOSS[n], tokens=n) for n in numbers])
    return metrics


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Cat.", "cat"),
        ("a man, an apple & the end!", "man apple end"),
        ("theatre", "theatre"),
        ("U.S.A.", "usa"),
        ("", ""),
    ],
)
def test_answers_are_compared_as_squad_does(text: str, normal: str) -> None:
    assert normal_answer(text) == normal


@pytest.mark.parametrize(
    ("said", "right", "f1"),
    [
        ("the dog", "a dog runs", 2 / 3),
        ("red red car", "red car", 4 / 5),
        ("cat", "dog", 0.0),
        ("", "dog", 0.0),
        ("the", "a", 1.0),
    ],
)
def test_f1_counts_shared_words(said: str, right: str, f1: float) -> None:
    assert token_f1(said, right) == pytest.approx(f1)


@given(st.text(max_size=30), st.text(max_size=30))
def test_f1_is_symmetric_and_1_for_equal_answers(one: str, other: str) -> None:
    assert token_f1(one, other) == pytest.approx(token_f1(other, one))
    assert token_f1(one, one) == exact_match(one, one) == 1
    assert 0 <= token_f1(one, other) <= 1


def test_the_best_reference_counts() -> None:
    found = metrics_of(list(range(6))).compute()
    assert found["exact_match"] == pytest.approx(3 / 6)
    assert found["token_f1"] == pytest.approx((1 + 1 + 0 + 1 + 0 + 2 / 3) / 6)
    assert found["exact_match_low"] < 0.5 < found["exact_match_high"]


def share(numbers: list[list[int]]) -> dict[str, float]:
    return metrics_of(numbers[collectives.rank()]).compute()


def test_two_ranks_give_the_numbers_of_one(ranks: Any) -> None:
    whole = metrics_of(list(range(6))).compute()
    first, second = ranks(share, [[0, 2, 4], [1, 3, 5, 5]])  # one was seen twice
    assert first == second == whole
    assert ranks(share, [[], list(range(6))])[0] == whole


@pytest.mark.parametrize("part", ["source", "kind"])
def test_each_source_and_kind_has_the_numbers_of_an_evaluation_of_its_own(part: str) -> None:
    mixed = TextMetrics([AnswerScores(), Perplexity()])
    answers = [Answered(n, SAID[n], RIGHT[n], str(n), loss=LOSS[n], tokens=n) for n in range(6)]
    mixed.update([one._replace(**{part: ("zoo", "town")[one.place % 2]}) for one in answers])
    found = mixed.compute()
    assert {name: value for name, value in found.items() if "@" not in name} == metrics_of(
        list(range(6))
    ).compute()
    for source, numbers in (("zoo", [0, 2, 4]), ("town", [1, 3, 5])):
        alone = metrics_of(numbers).compute()
        assert {name: found[f"{name}@{source}"] for name in alone} == alone
        assert len(found) == 3 * len(alone)


def test_sources_and_kinds_stand_beside_each_other() -> None:
    metrics = TextMetrics([AnswerScores()])
    kinds = [("zoo", "number"), ("zoo", ""), ("town", "number")]
    metrics.update([
        Answered(n, "two", (("two", "one", "two")[n],), str(n), source=source, kind=kind)
        for n, (source, kind) in enumerate(kinds)
    ])  # fmt: skip
    found = metrics.compute()
    parts = {name.partition("@")[2]: value for name, value in found.items() if name.startswith("token_f1")}
    assert parts == {"": pytest.approx(2 / 3), "zoo": 0.5, "town": 1.0, "number": 1.0}


def test_a_kind_that_is_called_like_a_source_is_not_mixed_with_it() -> None:
    metrics = TextMetrics([AnswerScores()])
    for place, (source, kind, right) in enumerate([("a", "b", "one"), ("b", "c", "two"), ("b", "", "two")]):
        metrics.update([Answered(place, "two", (right,), str(place), source=source, kind=kind)])
    found = metrics.compute()
    assert (found["exact_match@a"], found["exact_match@b"], found["exact_match@c"]) == (0.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("Dear aunt Sue,", "Dear Aunt Sue,"),
        ("1.5 m", "15 m"),
        ("-3°C", "3°C"),
        ("C", "C++"),
        ("the cat", "cat"),
    ],
)
def test_choices_are_compared_letter_by_letter(said: str, right: str) -> None:
    answers = [Answered(0, said, (right,), "0"), Answered(1, f" {right} ", ("x", right), "1")]
    assert ChoiceScores()(answers)["exact_match"] == 0.5
    assert AnswerScores()(answers)["exact_match"] == 1.0
    assert StatementScores(letters=True)(answers)["accuracy"] == 0.5
    assert ChoiceScores().normal(f" {right} ") == right


def test_only_the_commonest_kinds_are_scored_apart() -> None:
    metrics = TextMetrics([AnswerScores()])
    metrics.update([Answered(n, "two", ("two",), str(n), kind=str(n % 150)) for n in range(150 + 100)])
    found = {name.partition("@")[2] for name in metrics.compute()} - {""}
    assert found == {str(n) for n in range(100)}


def test_answers_come_in_the_order_of_their_places_and_reset_forgets_them() -> None:
    metrics = metrics_of([3, 1, 2])
    assert [one.place for one in metrics.answered()] == [1, 2, 3]
    metrics.reset()
    assert metrics.answered() == []


def test_losses_are_scored_with_or_without_references() -> None:
    metrics = TextMetrics([AnswerScores(), Perplexity()])
    metrics.update([Answered(0, "red", (), "a", loss=2.0, tokens=1)])
    assert metrics.compute() == {"perplexity": pytest.approx(math.exp(2))}
    metrics.update([Answered(1, "red", ("red",), "b"), Answered(2, "red", ("red",), "c", loss=1.0, tokens=2)])
    assert metrics.compute()["perplexity"] == pytest.approx(math.e)
    assert metrics.compute()["exact_match"] == 1


def test_without_references_there_is_no_score() -> None:
    metrics = TextMetrics([AnswerScores(), Perplexity()])
    metrics.update([Answered(0, "red", (), "a")])
    assert metrics.compute() == {}
    assert [one.prediction for one in metrics.answered()] == ["red"]


def test_a_statement_is_understood_where_it_is_judged_rightly_in_every_arrangement() -> None:
    judged = [("a", "true", "true"), ("a", "True.", "true"), ("b", "true", "false"), ("b", "false", "false"),
              ("c", "perhaps", "true")]  # fmt: skip
    answers = [Answered(n, said, (right,), group) for n, (group, said, right) in enumerate(judged)]
    found = StatementScores()(answers)
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["consistency"] == pytest.approx(1 / 3)
    # Of three groups drawn with replacement, all are the right one in 1 of 27 and none in 8 of 27.
    assert (found["consistency_low"], found["consistency_high"]) == (0, 1)
