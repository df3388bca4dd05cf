"""VQA's accuracy, against numbers of the official evaluation, and by hand; ten answers on their way to it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmlab.data.order import EvaluationOrder
from mmlab.data.shards import ShardSet, write_shards
from mmlab.data.stream import Known, Stream
from mmlab.metrics.text import Answered, TextMetrics
from mmlab.metrics.vqa import VqaScores, normal_vqa_answer, vqa_accuracy
from mmlab.sources.questions import Question, one_by_one

# Made with vqaEval.py of GT-Vision-Lab/VQA, revision a013f00: ten answers by how many gave them, and what the
# code says of what was said. On 100,000 random sets of 4 to 10 answers both agreed to 1e-12.
OFFICIAL = [
    ("yes", {"yes": 10}, 1.0),
    ("Yes", {"yes": 10}, 0.0),  # all agree: to the letter
    ("yes.", {"yes": 10}, 0.0),
    ("the cat", {"the cat": 10}, 1.0),
    ("cat", {"the cat": 10}, 0.0),
    ("yes\n", {"yes": 1, "yes ": 1, " yes": 1, "yes\t": 7}, 1.0),  # spaces go before that is looked at
    ("Yes.", {"yes": 9, "no": 1}, 1.0),
    ("YES", {"Yes": 5, "yes": 5}, 1.0),
    ("no", {"yes": 9, "no": 1}, 0.3),
    ("no", {"yes": 8, "no": 2}, 0.6),
    ("no", {"yes": 7, "no": 3}, 0.9),
    ("no", {"yes": 6, "no": 4}, 1.0),
    ("none", {"0": 4, "zero": 3, "none": 2, "1": 1}, 1.0),
    ("two", {"2": 5, "Two": 2, "3": 3}, 1.0),
    ("eleven", {"11": 5, "eleven": 2, "12": 3}, 0.6),  # digits up to ten
    ("two?", {"2": 6, "3": 4}, 1.0),
    ("twenty-one", {"twenty 1": 6, "21": 4}, 1.0),
    ("the dog", {"dog": 6, "a dog": 2, "cat": 2}, 1.0),
    ("a", {"the": 5, "a": 2, "b": 3}, 1.0),  # nothing is left of either
    ("", {"a": 6, "dog": 4}, 1.0),
    ("?!", {"": 6, "!": 4}, 1.0),
    ("dont know", {"don't know": 6, "no": 4}, 1.0),
    ("DONT", {"don't": 6, "no": 4}, 1.0),
    ("im", {"i'm": 6, "no": 4}, 0.0),  # the table has `Im`, and words are lower case by then
    ("somebody'd", {"somebodyd": 6, "no": 4}, 1.0),  # a slip of the table
    ("t-shirt", {"t shirt": 6, "shirt": 4}, 1.0),
    ("t- shirt", {"t-shirt": 3, "t shirt": 3, "shirt": 4}, 1.0),
    ("t-shirt - red", {"tshirt red": 6, "t shirt red": 4}, 1.0),  # one is beside a space: both vanish
    ("black/white", {"black white": 6, "black": 4}, 1.0),
    ("red,blue", {"red blue": 6, "red": 4}, 1.0),
    ("1,000-2,000", {"10002000": 6, "1000 2000": 4}, 1.0),  # a comma between digits: all marks vanish
    ("3.5", {"3.5": 6, "35": 4}, 1.0),
    ("3.", {"3": 6, "3.5": 4}, 1.0),
    ("u.s.", {"US": 6, "usa": 4}, 1.0),
    ("a" + 32 * "." + "b", {"ab": 6, "a.b": 4}, 1.0),
    ("a" + 33 * "." + "b", {"ab": 6, "a.b": 4}, 0.0),  # 32 full stops go, no more
    ("10:30", {"10:30": 6, "1030": 4}, 1.0),  # a colon is no mark
]  # fmt: skip


@pytest.mark.parametrize(("said", "people", "accuracy"), OFFICIAL)
def test_accuracy_is_the_official_one(said: str, people: dict[str, int], accuracy: float) -> None:
    answers = [answer for answer, number in people.items() for _ in range(number)]
    assert len(answers) == 10
    assert vqa_accuracy(said, answers) == pytest.approx(accuracy, abs=1e-12)


words = st.sampled_from(["red", "Red", "a red", "red.", "two", "2", "blue"])


@settings(max_examples=50, deadline=None)
@given(words, st.lists(words, min_size=4, max_size=12))
def test_leaving_each_person_out_in_turn(said: str, answers: list[str]) -> None:
    differ = len(set(answers)) > 1
    normal = normal_vqa_answer if differ else str
    scores = []
    for left_out in range(len(answers)):
        others = [answer for number, answer in enumerate(answers) if number != left_out]
        scores.append(min(sum(normal(said) == normal(answer) for answer in others) / 3, 1))
    assert vqa_accuracy(said, answers) == pytest.approx(sum(scores) / len(scores))


@pytest.mark.parametrize(
    ("said", "answers", "accuracy"),
    [
        ("Red!", ["red"], 1.0),  # one answer: normalised
        ("blue", ["red"], 0.0),
        ("red", ["red", "red"], 1.0),
        ("Red", ["red", "red"], 0.0),
        ("red", ["red", "blue"], 0.5),  # of either person the other one is asked
        ("red", ["red", "red", "red"], 1.0),
        ("red", ["red", "red", "blue"], (0.5 + 0.5 + 1) / 3),
        ("red", ["red", "blue", "green"], (0 + 0.5 + 0.5) / 3),
    ],
)
def test_fewer_than_four_answers(said: str, answers: list[str], accuracy: float) -> None:
    assert vqa_accuracy(said, answers) == pytest.approx(accuracy)


def test_scores_have_an_interval_over_pictures() -> None:
    people = ("no", *["yes"] * 9)
    said = [("yes", "a"), ("yes", "a"), ("no", "b"), ("maybe", "c")]
    metrics = TextMetrics([VqaScores()])
    metrics.update([Answered(n, answer, people, group) for n, (answer, group) in enumerate(said)])
    found = metrics.compute()
    assert found["vqa_accuracy"] == pytest.approx((1 + 1 + 0.3 + 0) / 4)
    assert 0 <= found["vqa_accuracy_low"] < found["vqa_accuracy"] < found["vqa_accuracy_high"] <= 1
    assert set(found) == {"vqa_accuracy", "vqa_accuracy_low", "vqa_accuracy_high"}


def test_ten_answers_come_from_a_shard_with_their_repetitions(tmp_path: Path) -> None:
    ten = ("net", "net", "a net", "2", "net", "mesh", "2", "net", "net", "net")
    asked = [Question(n, n, f"{n}.jpg", "What is this?", "net", ten[n:] + ten[:n]) for n in range(3)]
    samples = ({"__key__": item.key, "json": item.about} for item in one_by_one(asked))
    write_shards(samples, tmp_path, "val")
    shards = ShardSet.find("val-*.tar", folder=tmp_path)
    order = EvaluationOrder(shards.counts, batch_size=2)
    stream = Stream(shards, order, [], seed=None, known=Known(("json.answers",)))
    batches = [stream.batch(step) for step in range(order.steps)]
    found = [references for batch in batches for references in batch.references if references]
    assert found == [question.answers for question in asked]
    assert [vqa_accuracy("two", references) for references in found] == pytest.approx([0.6] * 3)
