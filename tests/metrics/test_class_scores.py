"""Scores of classes and of numbers, against scikit-learn and MMSA's own lines."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score

from mmlab.metrics.classification import ClassScores, confusion
from mmlab.metrics.regression import ScaleScores
from mmlab.metrics.text import Answered, TextMetrics

LABELS = ["low", "middle", "high"]


def answers(right: list[str], said: list[str], groups: list[str] | None = None) -> list[Answered]:
    groups = [str(n) for n in range(len(right))] if groups is None else groups
    return [
        Answered(n, one, (known,), group)
        for n, (known, one, group) in enumerate(zip(right, said, groups, strict=True))
    ]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS)), min_size=1, max_size=25))
@pytest.mark.filterwarnings("ignore:.*y_pred contains classes not in y_true")
@pytest.mark.filterwarnings("ignore:A single label was found")
def test_classes_are_scored_as_scikit_learn_does(pairs: list[tuple[str, str]]) -> None:
    right, said = map(list, zip(*pairs, strict=True))
    found = ClassScores()(answers(right, said))
    assert found["accuracy"] == pytest.approx(np.mean(np.equal(right, said)))
    assert found["macro_f1"] == pytest.approx(f1_score(right, said, average="macro"))
    assert found["weighted_f1"] == pytest.approx(f1_score(right, said, average="weighted"))
    recalls = [np.mean([s == label for r, s in pairs if r == label]) for label in set(right)]
    assert found["uar"] == pytest.approx(np.mean(recalls))
    assert found["uar"] == pytest.approx(balanced_accuracy_score(right, said))
    assert found["uar_low"] <= found["uar"] + 1e-9
    assert found["uar_high"] >= found["uar"] - 1e-9


def test_confusions_are_counted_in_the_order_asked_for() -> None:
    right, said = ["low", "high", "high", "odd"], ["low", "low", "high", "high"]
    table = confusion(answers(right, said), ["low", "high"])
    assert table.labels == ("low", "high", "odd")
    assert np.array_equal(table.counts, confusion_matrix(right, said, labels=["low", "high", "odd"]))


def test_of_many_labels_the_commonest_are_shown() -> None:
    right = ["a"] * 4 + ["b"] * 3 + ["c", "d"]
    table = confusion(answers(right, ["a"] * 8 + ["e"]), limit=3)
    assert table.labels == ("a", "b", "(others)")
    assert table.counts == ((4, 0, 0), (3, 0, 0), (1, 0, 1))


def test_ranks_are_some_steps_apart() -> None:
    found = ClassScores(LABELS, ordered=True)(answers(["low", "high", "middle"], ["high", "high", "low"]))
    assert found["rank_error"] == 1
    with pytest.raises(ValueError, match="ordered classes need their labels"):
        ClassScores(ordered=True)


def mmsa(pred: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """The lines of MMSA's MetricsTop.__eval_mosi_regression (thuiar/MMSA, src/MMSA/utils/metricsTop.py)."""

    def multiclass(one: np.ndarray, other: np.ndarray) -> float:
        return float(np.sum(np.round(one) == np.round(other)) / float(len(other)))

    non_zeros = np.array([i for i, e in enumerate(truth) if e != 0])
    binary = {
        "has0": (truth >= 0, pred >= 0),
        "non0": (truth[non_zeros] > 0, pred[non_zeros] > 0),
    }
    found = {
        "mae": float(np.mean(np.absolute(pred - truth))),
        "corr": float(np.corrcoef(pred, truth)[0][1]),
        "acc_7": multiclass(np.clip(pred, -3.0, 3.0), np.clip(truth, -3.0, 3.0)),
        "acc_5": multiclass(np.clip(pred, -2.0, 2.0), np.clip(truth, -2.0, 2.0)),
    }
    for name, (wanted, told) in binary.items():
        found[f"acc_2_{name}"] = float(np.mean(wanted == told))
        found[f"f1_{name}"] = float(f1_score(wanted, told, average="weighted"))
    return found


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.floats(-4, 4, width=32), st.sampled_from([-3, -1.8, -0.5, -0.4, 0, 0.2, 0.5, 1.5, 2.5, 3])
        ),
        min_size=3,
        max_size=25,
    )
)
def test_numbers_are_scored_as_mmsa_does(pairs: list[tuple[float, float]]) -> None:
    said, right = (np.array(side, dtype=np.float64) for side in zip(*pairs, strict=True))
    if np.ptp(said) < 1e-3 or np.ptp(right) == 0 or (right == 0).all():
        return
    found = ScaleScores()(answers([repr(float(x)) for x in right], [repr(float(x)) for x in said]))
    for name, value in mmsa(said, right).items():
        assert found[name] == pytest.approx(value, abs=1e-9), name


def test_where_numbers_say_nothing_the_score_is_none() -> None:
    found = ScaleScores()(answers(["0", "0"], ["1", "1"]))
    assert math.isnan(found["corr"])
    assert math.isnan(found["acc_2_non0"])
    assert found["acc_2_has0"] == 1
    # One that is said and is no number is no wrong answer among right ones.
    broken = ScaleScores()(answers(["1", "-1", "0"], ["nan", "-1", "0"]))
    assert set(broken) == set(found)
    assert all(math.isnan(value) for value in broken.values())
    rounded = ScaleScores()(answers(["1", "-1"], ["-0.0708595961", "-0.070859611"]))
    assert math.isnan(rounded["corr"])


def test_samples_with_other_modalities_are_scored_apart() -> None:
    metrics = TextMetrics([ClassScores()])
    present = ["text", "audio+text", "audio+text"]
    made = answers(["a", "b", "a"], ["b", "b", "a"])
    metrics.update([one._replace(present=there) for one, there in zip(made, present, strict=True)])
    found = metrics.compute()
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["accuracy@audio+text"] == 1
    assert found["accuracy@text"] == 0
    metrics = TextMetrics([ClassScores()])
    metrics.update([one._replace(present="text") for one in made])
    assert not any("@" in name for name in metrics.compute())
