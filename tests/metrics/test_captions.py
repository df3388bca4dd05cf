"""BLEU, ROUGE-L and CIDEr: against pycocoevalcap, nlg-eval and aac-metrics, and by what they mean."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmlab.metrics.bleu import corpus_bleu
from mmlab.metrics.captions import CaptionScores
from mmlab.metrics.cider import cider
from mmlab.metrics.rouge import common_length, rouge_l
from mmlab.metrics.text import Answered

SAID = ["a man is speaking", "rain falls"]
RIGHT = [
    ("a man speaks.", "someone speaks.", "a man is speaking while a bird is chirping in the background"),
    ("rain is falling hard on a surface",),
]
"""The example of aac-metrics."""
words = st.lists(st.sampled_from("abc"), max_size=9)


def score(said: Sequence[str], right: Sequence[Sequence[str]]) -> dict[str, float]:
    pairs = enumerate(zip(said, right, strict=True))
    return CaptionScores()([Answered(n, one, tuple(known), str(n)) for n, (one, known) in pairs])


@cache
def captions_of_coco(folder: Path) -> dict[int, list[str]]:
    """Captions of each picture of val2017, in the order of the file."""
    path = folder / "reference-results" / "coco" / "annotations" / "captions_val2017.json"
    found: dict[int, list[str]] = {}
    for one in json.loads(path.read_text())["annotations"]:
        found.setdefault(one["image_id"], []).append(one["caption"])
    return found


# What follows was made with pycocoevalcap 1.2: its tokenizer (in Java; each caption alone), and its classes
# Bleu, Rouge and Cider. Its CiderScorer without `min(...)` and without the penalty gave `cider_plain`.


def test_captions_of_a_model_score_as_by_pycocoevalcap(public_data: Path) -> None:
    """Of coco-caption's own results, the 126 on pictures that val2017 has."""
    known = captions_of_coco(public_data)
    path = public_data / "reference-results" / "coco" / "results" / "captions_val2014_fakecap_results.json"
    said = {one["image_id"]: one["caption"] for one in json.loads(path.read_text())}
    pictures = sorted(set(said) & set(known))
    assert len(pictures) == 126
    found = score([said[one] for one in pictures], [known[one] for one in pictures])
    expected = {
        "bleu_1": 0.5854765629538757, "bleu_2": 0.40473798592040316, "bleu_3": 0.2825074892034112,
        "bleu_4": 0.1982654397164889, "rouge_l": 0.407980104450301, "cider": 0.6277218728360187,
        "cider_plain": 0.7339583770478234,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-12)
    assert found["cider_d"] == found["cider"]
    assert found["cider_low"] < found["cider"] < found["cider_high"]


def test_people_score_as_by_pycocoevalcap(public_data: Path) -> None:
    """The first caption of every 25th picture against the others."""
    known = captions_of_coco(public_data)
    captions = [known[picture] for picture in sorted(known)[::25]]
    found = score([one[0] for one in captions], [one[1:] for one in captions])
    expected = {
        "bleu_1": 0.6228458887244595, "bleu_2": 0.42500436397830643, "bleu_3": 0.27800003414431673,
        "bleu_4": 0.17875201934302246, "rouge_l": 0.4545145527465725, "cider": 0.9135137163888064,
        "cider_plain": 0.9997861720063124,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-12)


def test_captions_of_sounds_score_as_by_pycocoevalcap(public_data: Path) -> None:
    with (public_data / "reference-results" / "aac-metrics" / "example_1.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    right = [[row[f"caption_{n}"] for n in range(1, 6) if row[f"caption_{n}"]] for row in rows]
    found = score([row["caption_predicted"] for row in rows], right)
    expected = {
        "bleu_1": 0.5041298775276263, "bleu_2": 0.3348984284798925, "bleu_3": 0.22295284460382805,
        "bleu_4": 0.1449174503141603, "rouge_l": 0.3958084293671707, "cider": 0.40172373459481703,
        "cider_plain": 0.4483998935802024,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-12)


def test_words_of_all_kinds_score_as_by_pycocoevalcap(public_data: Path) -> None:
    """Own caption, another picture's, one twice, a beginning, nothing; words as blanks part them."""
    known = captions_of_coco(public_data)
    captions = [[caption.lower().split() for caption in known[picture]] for picture in sorted(known)[::10]]
    draw = random.Random(0)
    said = []
    for number, (own, *_) in enumerate(captions):
        other = captions[(number + 1) % len(captions)][0]
        said.append([own, other, own + own, own[:3], []][int(draw.random() * 5)])
    right = [own[1:] for own in captions]
    assert corpus_bleu(said, right) == pytest.approx(
        [0.3517206229107357, 0.21604827505107482, 0.13298639683024893, 0.08452255111273324], rel=1e-12
    )
    rouge = [rouge_l(answer, own) for answer, own in zip(said, right, strict=True)]
    assert sum(rouge) / 500 == pytest.approx(0.25534258143762933, rel=1e-12)
    scores = cider(said, right)
    assert sum(one.d for one in scores) / 500 == pytest.approx(0.22188977908835203, rel=1e-12)
    assert sum(one.plain for one in scores) / 500 == pytest.approx(0.4203041649681391, rel=1e-12)
    first = [0.0, 0.02058172154857062, 0.06926562397190675, 0.003287176383787622, 0.05224619992417813]
    assert [one.d for one in scores[:5]] == pytest.approx(first, rel=1e-12)


def test_numbers_of_nlg_eval(public_data: Path) -> None:
    """Its own tests, to its five places; it parts words at blanks."""
    folder = public_data / "reference-results" / "nlg-eval"
    said, one, other = (
        [line.split() for line in (folder / name).read_text().splitlines()]
        for name in ("hyp.txt", "ref1.txt", "ref2.txt")
    )
    right = list(zip(one, other, strict=True))
    assert corpus_bleu(said, right) == pytest.approx([0.55, 0.428174, 0.284043, 0.201143], abs=1e-5)
    rouge = [rouge_l(answer, own) for answer, own in zip(said, right, strict=True)]
    assert sum(rouge) / 2 == pytest.approx(0.522104, abs=1e-5)
    assert sum(one.d for one in cider(said, right)) / 2 == pytest.approx(1.242192, abs=1e-5)


@pytest.mark.parametrize(
    ("said", "right", "bleu"),
    [
        ("this is a good test", ["this is a test", "this is also a test"],
         [0.799999, 0.632455, 0.5108729, 0.0000903602]),
        ("Le test est en français.", ["Test en français.", "Le test en français."],
         [0.799999, 0.632455, 0.0000051, 0]),
    ],
)  # fmt: skip
def test_one_sample_by_nlg_eval(said: str, right: list[str], bleu: list[float]) -> None:
    answer, references = said.split(), [reference.split() for reference in right]
    assert corpus_bleu([answer], [references]) == pytest.approx(bleu, abs=1e-5)
    assert rouge_l(answer, references) == pytest.approx(0.9070631, abs=1e-5)
    assert cider([answer], [references])[0].d == 0


def test_numbers_of_aac_metrics() -> None:
    found = score(SAID, RIGHT)
    assert found["bleu_1"] == pytest.approx(0.4278, abs=5e-5)
    assert found["cider"] == pytest.approx(0.9614, abs=5e-5)
    # Two groups: the interval of their mean is from the one to the other.
    assert found["cider_low"] == pytest.approx(0.5587, abs=5e-5)
    assert found["cider_high"] == pytest.approx(1.3641, abs=5e-5)


def test_the_caption_of_a_person_to_the_letter_is_perfect() -> None:
    said = ["A dog runs on a beach.", "two red buses in the rain", "a plate of food, on a table"]
    found = score(said, [[one.upper()] for one in said])
    assert [found[f"bleu_{n}"] for n in (1, 2, 3, 4)] == pytest.approx([1] * 4, abs=1e-8)
    assert found["rouge_l"] == 1
    assert found["cider"] == pytest.approx(10)
    assert found["cider_plain"] == pytest.approx(10)


def test_nothing_said_is_worth_nothing() -> None:
    found = score(["", "..."], RIGHT)
    assert {name for name, value in found.items() if value != pytest.approx(0, abs=1e-9)} == set()
    assert rouge_l([], [["a"], []]) == 1  # as coco-caption has it


def test_one_sample_has_no_cider() -> None:
    """Every n-gram of the references is in those of all samples, so none tells them apart."""
    found = score([RIGHT[1][0]], [RIGHT[1]])
    assert found["cider"] == found["cider_plain"] == 0
    assert found["bleu_4"] == pytest.approx(1)


def test_saying_it_twice_costs() -> None:
    bus, other = ["a", "red", "bus", "drives", "by"], ["x"]
    once, _ = cider([bus, other], [[bus], [["y"]]])
    twice, _ = cider([bus + bus, other], [[bus], [["y"]]])
    assert once.d == pytest.approx(10)
    assert twice.d < 5 < 9 < twice.plain
    assert corpus_bleu([["a"] * 4], [[["a", "b", "c", "d"]]])[0] == pytest.approx(1 / 4)


def test_the_length_to_reach_is_the_nearest() -> None:
    four, six, nine = (["a"] * n for n in (4, 6, 9))
    assert corpus_bleu([["a"] * 5], [[six, four]])[0] == pytest.approx(1)  # of two as near, the shorter
    assert corpus_bleu([["a"] * 5], [[six, nine]])[0] == pytest.approx(2.718281828 ** (1 - 6 / 5))
    assert corpus_bleu([["a"] * 5], [[["a"]]])[0] == pytest.approx(1 / 5)


@given(
    st.lists(st.tuples(words, st.lists(words, min_size=1, max_size=3)), min_size=1, max_size=5), st.randoms()
)
def test_the_order_of_samples_and_of_references_is_nothing(
    samples: list[tuple[list[str], list[list[str]]]], shuffler: random.Random
) -> None:
    said, right = [list(part) for part in zip(*samples, strict=True)]
    scores = cider(said, right)
    order = list(range(len(samples)))
    shuffler.shuffle(order)
    moved = [shuffler.sample(right[n], len(right[n])) for n in order]
    assert corpus_bleu([said[n] for n in order], moved) == pytest.approx(corpus_bleu(said, right))
    for n, references, one in zip(order, moved, cider([said[n] for n in order], moved), strict=True):
        assert rouge_l(said[n], references) == rouge_l(said[n], right[n])
        assert tuple(one) == pytest.approx(tuple(scores[n]))
        assert -1e-9 <= one.d <= one.plain + 1e-9 <= 10 + 1e-8


@given(words, words)
def test_the_longest_common_subsequence_is_that_of_the_table(one: list[str], other: list[str]) -> None:
    table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, left in enumerate(one, start=1):
        for j, right in enumerate(other, start=1):
            longer = max(table[i - 1][j], table[i][j - 1])
            table[i][j] = table[i - 1][j - 1] + 1 if left == right else longer
    assert common_length(one, other) == table[-1][-1]
