"""Scores of named entities: whole spans of words with their type, as CoNLL counts them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch

from mmlab.metrics.text import Answered, TextScore, groups

OUTSIDE = "O"
_DRAWS = 1000


class Span(NamedTuple):
    """An entity: its type, its first word, and the word behind its last."""

    type: str
    start: int
    stop: int


class Score(NamedTuple):
    """Precision, recall and F1, 0 where they are 0 / 0, and how many spans are right."""

    precision: float
    recall: float
    f1: float
    support: int


def spans(tags: Sequence[str]) -> set[Span]:
    """The entities of a sentence tagged by BIO, BIOES or BILOU.

    As conlleval and seqeval's default count: an entity begins at B, S or U, or where a tag of another type or
    O stands before; it ends before such a begin, at E, L, S or U, or before O. They do not know L and U, and
    take two U of one type in a row for one entity.

    Raises:
        ValueError: A tag is neither O nor one of these letters, a hyphen and a type.
    """
    found: set[Span] = set()
    start, last = 0, ("O", "")
    for place, tag in enumerate([*tags, OUTSIDE]):
        letter, type_ = parts(tag)
        if last[0] != "O" and (letter in "OBSU" or last[0] in "ESLU" or type_ != last[1]):
            found.add(Span(last[1], start, place))
        begins = last[0] in "OESLU" or type_ != last[1] or letter in "BSU"
        if letter != "O" and begins:
            start = place
        last = (letter, type_)
    return found


def parts(tag: str) -> tuple[str, str]:
    """The letter and the type of a tag."""
    if tag == OUTSIDE:
        return "O", ""
    letter, hyphen, type_ = tag.partition("-")
    if letter not in ("B", "I", "E", "S", "L", "U") or not hyphen or not type_:
        raise ValueError(f"the tag {tag!r} is not O, nor B-, I-, E-, S-, L- or U- and a type: correct it")
    return letter, type_


def score_of(hits: int, said: int, right: int) -> Score:
    """From counts of spans."""
    precision, recall = hits / said if said else 0.0, hits / right if right else 0.0
    f1 = 2 * hits / (said + right) if said + right else 0.0
    return Score(precision, recall, f1, right)


class Report(NamedTuple):
    """Scores by type, and over all types: of all spans together, and as means over types."""

    types: Mapping[str, Score]
    micro: Score
    macro: Score
    weighted: Score

    def text(self) -> str:
        """As people know it from CoNLL and seqeval."""
        rows = {**self.types, "micro avg": self.micro, "macro avg": self.macro, "weighted avg": self.weighted}
        width = max(map(len, rows))
        lines = [f"{'':>{width}}  precision    recall  f1-score   support", ""]
        for name, (precision, recall, f1, support) in rows.items():
            if name == "micro avg":
                lines.append("")
            lines.append(f"{name:>{width}}  {precision:9.4f} {recall:9.4f} {f1:9.4f} {support:9d}")
        return "\n".join(lines) + "\n"


def report(answers: Sequence[Answered]) -> Report:
    """Compare what was said with what is right; tags are joined by spaces."""
    hits: Counter[str] = Counter()
    said: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for told, known in _pairs(answers):
        hits.update(span.type for span in told & known)
        said.update(span.type for span in told)
        right.update(span.type for span in known)
    types = {name: score_of(hits[name], said[name], right[name]) for name in sorted({*said, *right})}
    total = max(right.total(), 1)

    def mean(weights: Mapping[str, float]) -> Score:
        precision, recall, f1 = (
            sum(weights[name] * float(getattr(score, what)) for name, score in types.items())
            for what in ("precision", "recall", "f1")
        )
        return Score(precision, recall, f1, right.total())

    return Report(
        types,
        score_of(hits.total(), said.total(), right.total()),
        mean(dict.fromkeys(types, 1 / max(len(types), 1))),
        mean({name: right[name] / total for name in types}),
    )


def _pairs(answers: Sequence[Answered]) -> Iterator[tuple[set[Span], set[Span]]]:
    return ((spans(one.prediction.split()), spans(one.references[0].split())) for one in answers)


class EntityScores(TextScore):
    """Precision, recall and F1 of entities, an entity being right where its span and its type are.

    `f1` (micro, with its interval over groups of sentences), `precision`, `recall`, `macro_f1`,
    `weighted_f1`, and `f1/TYPE` of each type: seqeval's numbers in its default mode. That mode does not know
    L and U, so by BILOU they differ: here each L and U ends its span, as E and S do (:func:`spans`).
    """

    def __call__(self, answers: Sequence[Answered]) -> dict[str, float]:
        """The scores."""
        found = report(answers)
        counts = torch.tensor(
            [[len(told & known), len(told), len(known)] for told, known in _pairs(answers)],
            dtype=torch.float64,
        )
        low, high = f1_interval(counts, answers)
        return {
            "f1": found.micro.f1, "f1_low": low, "f1_high": high, "precision": found.micro.precision,
            "recall": found.micro.recall, "macro_f1": found.macro.f1, "weighted_f1": found.weighted.f1,
            **{f"f1/{name}": score.f1 for name, score in found.types.items() if score.support > 0},
        }  # fmt: skip

    def normal(self, text: str) -> str:
        """Tags are compared as they are."""
        return text


def f1_interval(counts: torch.Tensor, answers: Sequence[Answered]) -> tuple[float, float]:
    """95 % of the F1 of as many groups of samples, drawn with replacement.

    Args:
        counts: What is right of what was said, what was said, and what is right, of each sample.
        answers: With their groups.
    """
    member = groups(answers)
    sums = torch.zeros(int(member.max()) + 1, 3, dtype=torch.float64).index_add_(0, member, counts)
    generator = torch.Generator().manual_seed(0)
    f1 = torch.empty(_DRAWS, dtype=torch.float64)
    for draw in range(_DRAWS):
        drawn = torch.randint(len(sums), (len(sums),), generator=generator)
        hits, said, right = sums[drawn].sum(dim=0).tolist()
        f1[draw] = 2 * hits / max(said + right, 1)
    low, high = f1.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high
