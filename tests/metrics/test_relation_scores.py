"""Scores of relations, against scikit-learn and against the counts that MNRE's baselines print."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

from mmlab.metrics.relations import RelationScores
from mmlab.metrics.text import Answered

RELATIONS = ["None", "/per/per/peer", "/per/loc/place_of_birth", "/loc/loc/contain"]
Pairs = list[tuple[str, str]]


def answers(pairs: Pairs) -> list[Answered]:
    """What is right and what is said."""
    return [Answered(n, said, (right,), str(n // 2)) for n, (right, said) in enumerate(pairs)]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(RELATIONS), st.sampled_from(RELATIONS)), min_size=1, max_size=25),
    st.sampled_from(["None", None]),
)
def test_scores_are_those_of_scikit_learn(pairs: Pairs, none: str | None) -> None:
    right, said = map(list, zip(*pairs, strict=True))
    found = RelationScores(none)(answers(pairs))
    labels = [relation for relation in RELATIONS if relation != none]
    for name, score in (("f1", f1_score), ("precision", precision_score), ("recall", recall_score)):
        wanted = score(right, said, labels=labels, average="micro", zero_division=0)
        assert found[name] == pytest.approx(wanted), name
    assert found["accuracy"] == pytest.approx(accuracy_score(right, said))
    for name in ("f1", "accuracy"):
        assert found[f"{name}_low"] <= found[name] + 1e-9
        assert found[f"{name}_high"] >= found[name] - 1e-9


def test_by_hand() -> None:
    """One found, one taken for another, one missed, one that is none: P 1 of 3, R 1 of 3."""
    peer, born, inside = RELATIONS[1:]
    pairs = [(peer, peer), (born, peer), (inside, "None"), ("None", born), ("None", "None")]
    found = RelationScores()(answers(pairs))
    assert (found["precision"], found["recall"], found["f1"]) == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert found["accuracy"] == pytest.approx(2 / 5)
    nothing = RelationScores()(answers([("None", "None")]))
    assert (nothing["f1"], nothing["accuracy"]) == (0, 1)
    assert RelationScores().normal("/per/per/peer") == "/per/per/peer"
