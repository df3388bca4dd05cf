"""Fields of documents: strings from tagged words, and scores by the whole string against scikit-learn."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_fscore_support
from torch import Tensor

from mmlab.metrics.fields import FieldScores, as_text, field_values
from mmlab.metrics.text import Answered

NAMES = ("company", "date", "total")
Fields = dict[str, str]


def sure(tags: list[str], values: list[float]) -> tuple[Tensor, list[str]]:
    """Probability of each tag: a value for the one told, the rest for O."""
    names = ["O", *sorted(set(tags) - {"O"})]
    found = torch.zeros(len(tags), len(names))
    for row, (tag, value) in enumerate(zip(tags, values, strict=True)):
        found[row, 0] = 1 - value
        found[row, names.index(tag)] = value
    return found, names


def test_words_become_a_string_as_they_are_printed() -> None:
    words = ["NO", ".", "5", ",", "JALAN", "X", "RM", "9.50"]
    tags = ["B-address", *["I-address"] * 5, "O", "B-total"]
    found = field_values(words, tags, *sure(tags, [1.0] * 8), glued=(1, 3, 7))
    assert found == {"address": "NO. 5, JALAN X", "total": "9.50"}
    assert field_values(words, ["O"] * 8, *sure(tags, [0.9] * 8)) == {}
    assert field_values([], [], torch.zeros(0, 2), ["O", "B-total"], least=0.1) == {}


def test_of_several_spans_the_surest_in_sum_is_taken() -> None:
    words = ["9.50", "9", ".", "60", "9.50", "RM"]
    tags = ["B-total", "B-total", "I-total", "I-total", "B-total", "O"]
    first = field_values(words, tags, *sure(tags, [0.9, 0.4, 0.3, 0.3, 0.8, 1.0]), glued=(2, 3))
    assert first == {"total": "9.60"}
    assert field_values(words, tags, *sure(tags, [0.9, 0.2, 0.3, 0.3, 0.9, 1.0])) == {"total": "9.50"}
    # Of equals the first.
    tags = ["B-x", "B-x"]
    assert field_values(["a", "b"], tags, *sure(tags, [0.5, 0.5])) == {"x": "a"}


def test_a_field_that_nothing_marks_has_its_likeliest_words() -> None:
    words = ["9", "8", "12", "-", "JAN", "7"]
    names = ["O", "B-total", "B-date", "I-date"]
    probability = torch.tensor(
        [
            [0.7, 0.3, 0.0, 0.0],
            [0.6, 0.4, 0.0, 0.0],
            [0.6, 0.0, 0.4, 0.0],
            [0.7, 0.0, 0.0, 0.3],
            [0.8, 0.0, 0.0, 0.2],
            [0.9, 0.0, 0.0, 0.1],
        ]
    )
    told = ["O"] * 6
    found = field_values(words, told, probability, names, glued=(3, 4), least=0.2)
    assert found == {"date": "12-JAN", "total": "8"}
    assert field_values(words, told, probability, names, glued=(3, 4), least=0.3) == {
        "date": "12-", "total": "8",
    }  # fmt: skip
    assert field_values(words, told, probability, names, least=0.5) == {}
    # What is marked stays, however unsure.
    told[0] = "B-total"
    assert field_values(words, told, probability, names, least=0.5) == {"total": "9"}


def test_likeliest_words_are_none_of_another_field() -> None:
    names = ["O", "B-company", "I-company", "B-date", "I-date"]
    probability = torch.tensor(
        [[0.55, 0.44, 0, 0.01, 0], [0.6, 0, 0.39, 0, 0.01], [0, 0, 0.1, 0.9, 0], [0.9, 0, 0.1, 0, 0]]
    )
    words = ["ACME", "LTD", "12/10/2018", "TEL"]
    found = field_values(words, ["O", "O", "B-date", "O"], probability, names, least=0.05)
    assert found == {"company": "ACME LTD", "date": "12/10/2018"}
    # Nor does one begin there.
    names = ["O", "B-date", "B-total"]
    probability = torch.tensor([[0.9, 0.04, 0.06], [0, 0.9, 0.1]])
    assert field_values(["x", "9"], ["O", "B-date"], probability, names, least=0.05) == {
        "date": "9", "total": "x",
    }  # fmt: skip
    assert field_values(["x", "9"], ["O", "B-date"], probability, names, least=0.07) == {"date": "9"}
    assert field_values(["9"], ["B-date"], probability[1:], names, least=0.05) == {"date": "9"}
    # Of two that nothing marks the likelier has the word, whatever they are called.
    probability = torch.tensor([[0.7, 0.1, 0.2], [0.9, 0.06, 0.04]])
    found = field_values(["x", "9"], ["O", "O"], probability, names, least=0.05)
    assert found == {"date": "9", "total": "x"}
    assert field_values(["x", "9"], ["O", "O"], probability, names, least=0.07) == {"total": "x"}


@pytest.mark.parametrize(("last", "alone"), [("E", "S"), ("L", "U")])
def test_likeliest_words_end_where_their_scheme_ends(last: str, alone: str) -> None:
    names = ["O", "B-a", "I-a", f"{last}-a", f"{alone}-a"]
    words, told = ["A", "B", "C", "D"], ["O"] * 4
    single = [0.6, 0.1, 0, 0, 0.3]
    several = [0.6, 0.3, 0, 0, 0.1]
    inside, ends = [0.6, 0.1, 0.2, 0.1, 0], [0.6, 0, 0.1, 0.3, 0]

    def told_of(*rows: list[float]) -> str:
        return field_values(words, told, torch.tensor(rows), names, least=0.05)["a"]

    assert told_of(single, ends, inside, inside) == "A"
    assert told_of(several, ends, inside, inside) == "A B"
    assert told_of(several, inside, ends, inside) == "A B C"
    assert told_of(several, inside, inside, inside) == "A B C D"
    assert told_of(several, inside, [0.98, 0, 0.02, 0, 0], inside) == "A B"


def answer(number: int, said: Fields, right: Fields, group: str = "") -> Answered:
    return Answered(number, as_text(said), (as_text(right),), group or str(number))


def test_scores_by_hand() -> None:
    found = FieldScores()(
        [
            answer(0, {"company": "A B", "total": "9.50"}, {"company": "A B", "total": "9.5", "date": "1"}),
            answer(1, {"date": "2", "company": ""}, {"date": "2", "company": "C"}),
        ]
    )
    assert found["precision"] == pytest.approx(2 / 3)
    assert found["recall"] == pytest.approx(2 / 5)
    assert found["f1"] == pytest.approx(4 / 8)
    assert {name: found[f"f1/{name}"] for name in NAMES} == pytest.approx(
        {"company": 2 / 3, "date": 2 / 3, "total": 0.0}
    )
    assert found["macro_f1"] == pytest.approx(4 / 9)


@pytest.mark.parametrize("said", ["a b", "A  B", "A B.", " A B"])
def test_strings_are_compared_letter_by_letter(said: str) -> None:
    found = FieldScores()([answer(0, {"company": said}, {"company": "A B"})])
    assert found["f1"] == 0.0
    assert FieldScores()([answer(0, {"company": "A B"}, {"company": "A B"})])["f1"] == 1.0


values = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(["a", "b", "c"]), max_size=3)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(values, values), min_size=1, max_size=8))
def test_scores_are_those_of_scikit_learn(pairs: list[tuple[Fields, Fields]]) -> None:
    """Every pair of a field and a value, in each document, is a label that is there or not."""
    found = FieldScores()([answer(n, said, right) for n, (said, right) in enumerate(pairs)])
    labels = [(name, value) for name in NAMES for value in "abc"]
    right = [int(known.get(name) == value) for _, known in pairs for name, value in labels]
    said = [int(told.get(name) == value) for told, _ in pairs for name, value in labels]
    precision, recall, f1, _ = precision_recall_fscore_support(
        right, said, average="binary", zero_division=0.0
    )
    assert (found["precision"], found["recall"], found["f1"]) == pytest.approx((precision, recall, f1))
    assert found["f1_low"] <= found["f1"] + 1e-9
    assert found["f1_high"] >= found["f1"] - 1e-9


def test_no_field_at_all() -> None:
    found = FieldScores()([answer(0, {}, {})])
    assert (found["f1"], found["macro_f1"]) == (0.0, 0.0)
