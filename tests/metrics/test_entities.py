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


@pytest.mark.filterwarnings("ignore:U-PER seems not to be NE tag")
def test_the_last_letters_of_bilou_are_unknown_to_seqevals_default() -> None:
    assert spans(["U-PER", "U-PER"]) == {Span("PER", 0, 1), Span("PER", 1, 2)}
    assert get_entities(["U-PER", "U-PER"]) == [("PER", 0, 1)]


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
    for name, mean in (("macro", own.macro), ("weighted", own.weighted)):
        row = peer[f"{name} avg"]
        assert found[f"{name}_f1"] == pytest.approx(row["f1-score"])
        assert found[f"{name}_f1"] == pytest.approx(f1_score(right, said, average=name))
        assert mean == pytest.approx((row["precision"], row["recall"], row["f1-score"], row["support"]))
    for name, score in own.types.items():
        if score.support > 0:
            assert found[f"f1/{name}"] == pytest.approx(peer[name]["f1-score"])
            assert (score.precision, score.recall) == pytest.approx(
                (peer[name]["precision"], peer[name]["recall"])
            )
            assert score.support == peer[name]["support"]


def test_means_over_types_by_hand() -> None:
    right = [["B-PER", "O", "B-LOC"], ["B-LOC", "B-LOC", "O"]]
    said = [["B-PER", "O", "B-LOC"], ["B-LOC", "O", "O"]]
    found = EntityScores()(answers(list(zip(right, said, strict=True))))
    assert found["macro_f1"] == pytest.approx((1 + 0.8) / 2)
    assert found["weighted_f1"] == pytest.approx((1 + 3 * 0.8) / 4)
    for name in ("macro", "weighted"):
        assert found[f"{name}_f1"] == pytest.approx(f1_score(right, said, average=name))


def test_sentences_of_one_group_are_drawn_together() -> None:
    right = [["B-PER", "O", "B-LOC"]] * 12
    said = [["B-PER", "O", "B-LOC"] if n % 3 else ["O", "B-PER", "O"] for n in range(12)]
    once = answers(list(zip(right, said, strict=True)))
    # Each sentence stands there four times: as samples of one group, and as though they were others.
    known = [one._replace(place=n * 12 + one.place) for n in range(4) for one in once]
    first, grouped = EntityScores()(once), EntityScores()(known)
    alone = EntityScores()([one._replace(group=str(one.place)) for one in known])
    assert grouped["f1"] == alone["f1"] == first["f1"]
    assert (grouped["f1_low"], grouped["f1_high"]) == pytest.approx((first["f1_low"], first["f1_high"]))
    assert grouped["f1_high"] - grouped["f1_low"] > 1.5 * (alone["f1_high"] - alone["f1_low"]) > 0


def test_a_report_reads_as_seqevals() -> None:
    right = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-LOC", "I-LOC", "O"], ["B-PER", "O", "O"]]
    said = [["B-PER", "I-PER", "O", "O"], ["O", "B-LOC", "I-LOC", "O"], ["B-LOC", "O", "O"]]
    peer = classification_report(right, said, digits=4)
    own = report(answers(list(zip(right, said, strict=True)))).text()
    assert own.split() == peer.split()
