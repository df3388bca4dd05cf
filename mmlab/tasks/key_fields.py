"""Key fields of documents: what is the company, the date, the total of a receipt?"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from torchmetrics import Metric

from mmlab.adaptation.policy import Policy
from mmlab.batch import Batch
from mmlab.metrics.entities import parts
from mmlab.metrics.fields import FieldScores, as_text, field_values
from mmlab.metrics.text import TextMetrics, TextScore
from mmlab.models.word_tagger import WordTagger
from mmlab.optim import Optimization
from mmlab.tasks.generative import Answer, beside
from mmlab.tasks.tagging import Tagged, TaggingTask


class Document(NamedTuple):
    """What a sample's note says of a document."""

    words: list[str]
    glued: frozenset[int]
    """Numbers of words before which no space stands."""
    fields: dict[str, str]
    """The right values; empty where they are not known."""


class KeyFieldTask(TaggingTask):
    """Tags every word of a document, and tells the string of each field that the tags mark.

    It learns from the tags of the words (`data.loading.references: [json.tags]`) and is scored by the right
    values, whole strings. These and the words come from `data.loading.note: json`: an object with `words`,
    `fields` and, where some words follow on others without a space, `glued`, their numbers. A sample without
    fields is told of, but not scored; one with a field that no tag marks is refused.

    Args:
        model: It gives as many tags.
        tags: All there are, by BIO, BIOES or BILOU; their types are the fields.
        optimization: Optimizer and learning-rate schedule.
        adaptation: Which parameters are trained.
        crf: Learn what may follow what (:class:`~mmlab.models.crf.TagField`), and decode whole documents.
        constrained: Tell the likeliest tags of a document that keep to their scheme (no I behind an O), not
            the likeliest tag of each word.
        scores: What it is measured by; None: precision, recall and F1 of fields.
        least: A field that no tags mark is told all the same by the word likeliest to begin it, if that has
            this probability (see :func:`~mmlab.metrics.fields.field_values`); 1 tells marked ones.

    Raises:
        ValueError: A tag is none or there twice, the model gives more or fewer, `constrained` would never let
            one be told (:func:`~mmlab.tasks.tagging.scheme`), or `least` is no probability.
    """

    def __init__(
        self,
        model: WordTagger,
        *,
        tags: list[str],
        optimization: Optimization,
        adaptation: Policy,
        crf: bool = False,
        constrained: bool = True,
        scores: list[TextScore] | None = None,
        least: float = 0.05,
    ) -> None:
        super().__init__(
            model, tags=tags, optimization=optimization, adaptation=adaptation, crf=crf,
            constrained=constrained,
        )  # fmt: skip
        if not 0 < least <= 1:
            raise ValueError(f"least={least} is a probability: above 0, up to 1")
        self.scores = [FieldScores()] if scores is None else scores
        self.least = least

    def make_metrics(self) -> Metric:
        """The scores of this task."""
        return TextMetrics(self.scores)

    def update_metrics(self, metrics: Metric, batch: Batch) -> None:
        """Keep the fields of a batch beside the right ones."""
        answers = self.predict(batch)
        metrics.update(
            [
                one._replace(references=self.references_of(batch, answer.sample))
                for one, answer in zip(beside(answers, batch), answers, strict=True)
            ]
        )

    def references_of(self, batch: Batch, sample: int) -> tuple[str, ...]:
        """The right fields; not the tags, from which it learns."""
        known = read_document(batch, sample).fields
        check_fields(batch.keys[sample], known, self.tags)
        return (as_text(known),) if known else ()

    def predict(self, batch: Batch) -> list[Answer]:
        """The fields of each valid sample, as JSON."""
        return [
            Answer(one.sample, batch.keys[one.sample], one.place, as_text(self._fields(batch, one)))
            for one in self.tell(batch)
        ]

    def _fields(self, batch: Batch, told: Tagged) -> dict[str, str]:
        """The string of each field."""
        if batch.text is not None and not batch.text.present[told.sample]:
            return {}  # its text was taken away
        words, glued, _ = read_document(batch, told.sample, count=len(told.tags))
        names = list(self.tags)
        return field_values(words, told.tags, told.probability, names, glued=glued, least=self.least)


def check_fields(key: str, known: Mapping[str, str], tags: Iterable[str]) -> None:
    """Raise ValueError for a field with a value that no tag marks: it would count as missed for ever."""
    types = {parts(tag)[1] for tag in tags} - {""}
    for name, value in known.items():
        if value.strip() and name not in types:
            raise ValueError(
                f"sample {key!r} has the field {name!r}, but the tags mark "
                f"{', '.join(sorted(types)) or 'none'}: add tags of it, write it as they do, or leave it out "
                "of the fields of data.loading.note"
            )


def read_document(batch: Batch, sample: int, *, count: int | None = None) -> Document:
    """What the note of a sample says; of so many words, where that is known.

    Raises:
        ValueError: The run reads none, it is no such object, or it has more or fewer words.
    """
    if not batch.notes:
        raise ValueError("fields are made of words: set data.loading.note to what holds them (`json`)")
    try:
        note: dict[str, Any] = json.loads(batch.notes[sample])
        words, fields = list(map(str, note["words"])), note.get("fields") or {}
        known = {str(name): str(value) for name, value in fields.items() if value is not None}
        found = Document(words, frozenset(map(int, note.get("glued") or ())), known)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"sample {batch.keys[sample]!r}: data.loading.note is no object with `words` and `fields` "
            f"({type(error).__name__}): name the member that is, or correct it"
        ) from error
    if count is not None and len(words) != count:
        raise ValueError(
            f"sample {batch.keys[sample]!r} has {count} words, its note {len(words)}: data.text.field and "
            "the words of data.loading.note must be the same"
        )
    return found
