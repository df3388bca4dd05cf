"""Scores of the key fields of documents: whole strings, as SROIE counts them, and how words become one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmlab.metrics.entities import OUTSIDE, f1_interval, score_of, spans
from mmlab.metrics.text import Answered, TextScore


def field_values(
    words: Sequence[str],
    tags: Sequence[str],
    probability: Float[Tensor, "words names"],
    names: Sequence[str],
    *,
    glued: Collection[int] = (),
    least: float = 1.0,
) -> dict[str, str]:
    """The value of each field that tags mark among words, or come near to marking.

    Of several spans of a field it is the one whose words are surest in sum, the first of equals. A field that
    no span marks has the word that is likeliest to begin it, and the words behind it that may go on with it,
    each with the probability `least` or more: a number that stands four times on a receipt is hardly ever
    more likely to be its total than not. None of these words is one of another field that is told, those
    likeliest to begin come first, and by BIOES and BILOU none goes on behind a word that is likelier to be
    the last of its field. Words are joined as they are printed: by a space, but where none stands before one.

    Args:
        words: As many as tags.
        tags: By BIO, BIOES or BILOU; the type is the field.
        probability: Of each tag in `names`.
        names: All tags, those told too.
        glued: Numbers of words before which no space stands.
        least: Above 0; 1 tells marked fields only, but for words that are certain.
    """
    number = {name: column for column, name in enumerate(names)}
    best: dict[str, tuple[float, int, int]] = {}
    for field, start, stop in sorted(spans(tags), key=lambda span: span.start):
        sure = sum(float(probability[n, number[tags[n]]]) for n in range(start, stop))
        if field not in best or sure > best[field][0]:
            best[field] = (sure, start, stop)
    found = {field: (start, stop) for field, (_, start, stop) in best.items()}
    if len(words) > 0:
        found |= _nearly_marked(probability, names, found, least=least)
    return {field: _printed(words, start, stop, glued) for field, (start, stop) in sorted(found.items())}


def _nearly_marked(
    probability: Float[Tensor, "words names"],
    names: Sequence[str],
    marked: Mapping[str, tuple[int, int]],
    *,
    least: float,
) -> dict[str, tuple[int, int]]:
    """First word and the one behind the last of each field that no tags mark, where it is likely enough."""
    free = torch.ones(len(probability), dtype=torch.bool)
    for start, stop in marked.values():
        free[start:stop] = False
    fields = sorted({name[2:] for name in names if name != OUTSIDE} - marked.keys())
    begins = {field: _likely(probability, names, field, "BSU") for field in fields}
    found: dict[str, tuple[int, int]] = {}
    for field in sorted(fields, key=lambda field: -float(begins[field][free].max())) if free.any() else ():
        begin = begins[field].masked_fill(~free, 0)
        start = int(begin.argmax())
        if float(begin[start]) >= least:
            stop = start + _length(probability[start:], names, field, free[start:], least=least)
            found[field] = (start, stop)
            free[start:stop] = False
    return found


def _length(
    probability: Float[Tensor, "words names"],
    names: Sequence[str],
    field: str,
    free: Bool[Tensor, " words"],
    *,
    least: float,
) -> int:
    """How many words a field has that begins with the first of these."""
    kinds = ("B", "SU", "I", "EL")
    begins, alone, inside, last = (_likely(probability, names, field, letters) for letters in kinds)
    length, ended = 1, bool(alone[0] > begins[0])
    while not ended and length < len(free) and free[length] and inside[length] + last[length] >= least:
        ended = bool(last[length] > inside[length])
        length += 1
    return length


def _likely(
    probability: Float[Tensor, "words names"], names: Sequence[str], field: str, letters: str
) -> Float[Tensor, " words"]:
    """Probability that a word is of a field, by one of these letters."""
    columns = [n for n, name in enumerate(names) if name[2:] == field and name[0] in letters]
    return probability[:, columns].sum(dim=1)


def _printed(words: Sequence[str], start: int, stop: int, glued: Collection[int]) -> str:
    inside = range(start, stop)
    return "".join(("" if n == start or n in glued else " ") + words[n] for n in inside)


def as_text(fields: Mapping[str, str]) -> str:
    """Fields as one text, equal where they are: JSON, sorted by name."""
    return json.dumps(dict(fields), ensure_ascii=False, sort_keys=True)


class FieldScores(TextScore):
    """Precision, recall and F1 of fields, one being right where its whole string is the released one.

    The protocol of SROIE's third task (Huang et al. 2019, arXiv:2103.10213, section IV): strings are compared
    letter by letter. `f1` (micro, over all fields of all documents, with its interval over groups of
    documents), `precision`, `recall`, `macro_f1` (the mean over fields), and `f1/FIELD` of each. Predictions
    and references are what :func:`as_text` gives; a blank value is none.
    """

    def __call__(self, answers: Sequence[Answered]) -> dict[str, float]:
        """The scores."""
        hits: Counter[str] = Counter()
        said: Counter[str] = Counter()
        right: Counter[str] = Counter()
        counts = torch.zeros(len(answers), 3, dtype=torch.float64)
        for number, one in enumerate(answers):
            told, known = _fields(one.prediction), _fields(one.references[0])
            same = [name for name, value in known.items() if told.get(name) == value]
            hits.update(same)
            said.update(told.keys())
            right.update(known.keys())
            counts[number] = torch.tensor([len(same), len(told), len(known)])
        low, high = f1_interval(counts, answers)
        micro = score_of(hits.total(), said.total(), right.total())
        names = sorted(right)
        each = {name: score_of(hits[name], said[name], right[name]).f1 for name in names}
        return {
            "f1": micro.f1, "f1_low": low, "f1_high": high, "precision": micro.precision,
            "recall": micro.recall, "macro_f1": sum(each.values()) / max(len(each), 1),
            **{f"f1/{name}": value for name, value in each.items()},
        }  # fmt: skip

    def normal(self, text: str) -> str:
        """Fields are compared as they are."""
        return text


def _fields(text: str) -> dict[str, str]:
    """The fields that have a value."""
    return {name: value for name, value in json.loads(text).items() if value.strip()}
