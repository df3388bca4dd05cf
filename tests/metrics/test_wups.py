"""WUPS: by hand, its laws, and beside the numbers of its authors' code."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from random import Random

import pytest
from fetching import fetched
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_wordnet import Noun, write_wordnet

from mmlab.assets import catalog
from mmlab.metrics.text import Answered, TextMetrics
from mmlab.metrics.wordnet import WordNet
from mmlab.metrics.wups import WupsScores, noun_likeness, wups

# Of calculate_wups.py (Malinowski 2014, of 5 September 2015), NLTK 3.10.4 and WordNet 3.0: what is said, what
# is right, and WUPS at 0.9 and at 0.0. Both agreed to 1e-12 on 20,000 random pairs of answers of one to four
# words, at three thresholds.
OFFICIAL = [
    ("chair", "chair", 1.0, 1.0),
    ("sofa", "chair", 0.9, 0.9),
    ("table", "chair", 0.08421052631578947, 0.8421052631578947),
    ("CHAIRS", "chair", 1.0, 1.0),
    ("people", "person", 0.05454545454545454, 0.5454545454545454),
    ("women", "woman", 1.0, 1.0),
    ("3", "three", 1.0, 1.0),
    ("two", "three", 0.9, 0.9),
    ("red", "blue", 0.08750000000000001, 0.875),
    ("red", "chair", 0.06315789473684211, 0.631578947368421),  # a Red sits in chairs of professors
    ("fridge", "refrigerator", 0.96, 0.96),
    ("dog", "entity", 0.025, 0.25),
    ("table,chair", "chair ,  table", 1.0, 1.0),
    ("table", "table, chair", 0.08421052631578947, 0.8421052631578947),
    ("table, chair", "table", 0.08421052631578947, 0.8421052631578947),
    ("sofa, table", "table, chair", 0.9, 0.9),
    ("lamp, lamp", "candle", 0.8975069252077561, 0.8975069252077561),  # twice the same costs twice
    ("candle", "lamp, lamp", 0.8975069252077561, 0.8975069252077561),
    ("red, red", "blue", 0.007656250000000002, 0.765625),
    ("table, table", "table", 1.0, 1.0),
    ("books, lamp, picture", "picture, lamp, book", 1.0, 1.0),
    ("bed, pillow", "bed, blanket, lamp", 0.07142857142857144, 0.7142857142857143),
    ("alcohol", "substance", 0.07272727272727274, 0.7272727272727273),  # the smaller of two orders
    ("substance", "alcohol", 0.07272727272727274, 0.7272727272727273),
    ("night_stand", "night_stand", 1.0, 1.0),  # not in WordNet
    ("night_stand", "table", 0.0, 0.0),
    ("coffee_table", "table", 0.9473684210526315, 0.9473684210526315),
    ("coffee table", "table", 0.0, 0.0),
    ("chair.", "chair", 0.0, 0.0),
    ("the", "chair", 0.0, 0.0),
    ("", "", 1.0, 1.0),
    (",", "", 1.0, 1.0),
    ("", "chair", 0.0, 0.0),
    ("chair,", "chair", 0.0, 0.0),
]


@pytest.fixture(scope="module")
def wordnet() -> WordNet:
    return WordNet(fetched(lambda: catalog.fetch("wordnet")))


@pytest.mark.parametrize(("said", "right", "near", "far"), OFFICIAL)
def test_scores_are_those_of_the_authors(
    wordnet: WordNet, said: str, right: str, near: float, far: float
) -> None:
    likeness = partial(noun_likeness, wordnet)
    found = [wups(said, right, threshold=threshold, likeness=likeness) for threshold in (0.9, 0.0)]
    assert found == pytest.approx([near, far], abs=1e-12)


LIKENESS = {("sofa", "chair"): 0.95, ("dog", "chair"): 0.5, ("dog", "sofa"): 0.4}


def likeness(one: str, other: str) -> float:
    return 1.0 if one == other else LIKENESS.get((one, other), LIKENESS.get((other, one), 0.0))


@pytest.mark.parametrize(
    ("said", "right", "score"),
    [
        ("sofa", "chair", 0.95),
        ("dog", "chair", 0.05),
        ("dog, sofa", "chair", 0.05 * 0.95),
        ("chair", "dog, sofa", 0.05 * 0.95),
        ("dog, sofa", "chair, dog", 0.95),
        ("dog, dog", "chair, sofa", min(0.05 * 0.05, 0.05 * 0.04)),
        ("lamp, sofa", "sofa", 0.0),
    ],
)
def test_products_of_the_best_by_hand(said: str, right: str, score: float) -> None:
    assert wups(said, right, threshold=0.9, likeness=likeness) == pytest.approx(score)


words = st.lists(st.sampled_from(["sofa", "chair", "dog", "lamp"]), min_size=1, max_size=4)


@settings(max_examples=50, deadline=None)
@given(words, words, st.sampled_from([0.0, 0.45, 0.9]), st.randoms(use_true_random=False))
def test_order_and_side_do_not_matter(
    said: list[str], right: list[str], threshold: float, random: Random
) -> None:
    measure = partial(wups, threshold=threshold, likeness=likeness)
    score = measure(",".join(said), ",".join(right))
    assert score == pytest.approx(measure(", ".join(right), ", ".join(said)))
    random.shuffle(said)
    assert score == pytest.approx(measure(",".join(said), ",".join(right)))
    assert 0 <= score <= 1
    assert (score == 1) == (set(said) == set(right))
    assert score <= wups(",".join(said), ",".join(right), threshold=0.0, likeness=likeness)


def test_scores_of_an_evaluation(tmp_path: Path) -> None:
    """Of several references the best one counts, and pictures are resampled."""
    write_wordnet(
        tmp_path,
        {
            "thing": Noun(["thing"]),
            "seat": Noun(["seat"], ["thing"]),
            "chair": Noun(["chair"], ["seat"]),
            "sofa": Noun(["sofa"], ["seat"]),
        },
    )
    metrics = TextMetrics([WupsScores(str(tmp_path))])
    said = [("chair", ("sofa",), "a"), ("chair", ("sofa", "chair"), "a"), ("seat", ("sofa",), "b")]
    metrics.update([Answered(n, *one) for n, one in enumerate(said)])
    found = metrics.compute()
    assert found["wups_0.0"] == pytest.approx((4 / 6 + 1 + 4 / 5) / 3)
    assert found["wups_0.9"] == pytest.approx((0.4 / 6 + 1 + 0.4 / 5) / 3)
    assert found["wups_0.9_low"] < found["wups_0.9"] < found["wups_0.9_high"]
    assert set(found) == {"wups_0.9", "wups_0.9_low", "wups_0.9_high", "wups_0.0"}


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not hold the nouns of WordNet"):
        WupsScores(str(tmp_path / "nothing"))
