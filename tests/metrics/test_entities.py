"""Entities and their scores, against seqeval."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import classification_report, f1_score, precision_score, recall_score
from seqeval.metrics.sequence_labeling import get_entities

from mmlab.metrics.entities import EntityScores, Span, report, spans
from mmlab.metrics.text import Answered

TAGS = ["O", *(f"{letter}-{name}" for letter in "BIES" for name in ("PER", "LOC"))]
Sentence = list[str]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(TAGS), max_size=9))
def test_spans_are_those_of_seqeval(tags: Sentence) -> None:
    assert spans(tags) == {Span(name, start, stop + 1) for name, start, stop in get_entities(tags)}


def test_spans_by_hand() -> None:
    assert spans(["B-PER", "I-PER", "O", "B-LOC", "B-LOC", "I-LOC"]) == {
        Span("PER", 0, 2), Span("LOC", 3, 4), Span("LOC", 4, 6),
    }  # fmt: skip
    assert spans(["I-PER", "I-LOC"]) == {Span("PER", 0, 1), Span("LOC", 1, 2)}
    assert spans(["U-PER", "B-LOC", "L-LOC"]) == {Span("PER", 0, 1), Span("LOC", 1, 3)}


@pytest.mark.parametrize("tag", ["X-PER", "B", "B-", "PER", ""])
def test_a_tag_that_is_none(tag: str) -> None:
    with pytest.raises(ValueError, match="is not O, nor B-, I-, E-, S-, L- or U- and a type: correct it"):
        spans(["O", tag])


def answers(pairs: list[tuple[Sentence, Sentence]]) -> list[Answered]:
    return [Answered(n, " ".join(said), (" ".join(right),), str(n)) for n, (right, said) in enumerate(pairs)]


@st.composite
def corpora(draw: st.DrawFn) -> list[tuple[Sentence, Sentence]]:
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))
    tags = st.sampled_from(TAGS[:5])
    return [
        (draw(st.lists(tags, min_size=n, max_size=n)), draw(st.lists(tags, min_size=n, max_size=n)))
        for n in sizes
    ]


@settings(max_examples=60, deadline=None)
@given(corpora())
@pytest.mark.filterwarnings("ignore::seqeval.metrics.v1.UndefinedMetricWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
def test_scores_are_those_of_seqeval(pairs: list[tuple[Sentence, Sentence]]) -> None:
    right, said = map(list, zip(*pairs, strict=True))
    found = EntityScores()(answers(pairs))
    assert found["f1"] == pytest.approx(f1_score(right, said))
    assert found["precision"] == pytest.approx(precision_score(right, said))
    assert found["recall"] == pytest.approx(recall_score(right, said))
    assert found["f1_low"] <= found["f1"] + 1e-9
    assert found["f1_high"] >= found["f1"] - 1e-9
    if not any(tag != "O" for tags in right for tag in tags):
        return  # seqeval's report has no rows then
    peer = classification_report(right, said, output_dict=True)
    own = report(answers(pairs))
    for name, score in own.types.items():
        if score.support > 0:
            assert found[f"f1/{name}"] == pytest.approx(peer[name]["f1-score"])
            assert (score.precision, score.recall) == pytest.approx(
                (peer[name]["precision"], peer[name]["recall"])
            )
            assert score.support == peer[name]["support"]


def test_a_report_reads_as_seqevals() -> None:
    right = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-LOC", "I-LOC", "O"], ["B-PER", "O", "O"]]
    said = [["B-PER", "I-PER", "O", "O"], ["O", "B-LOC", "I-LOC", "O"], ["B-LOC", "O", "O"]]
    peer = classification_report(right, said, digits=4)
    own = report(answers(list(zip(right, said, strict=True)))).text()
    assert own.split() == peer.split()
