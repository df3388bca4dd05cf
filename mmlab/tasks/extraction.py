"""Named entities: which words of a text name a person, a place, a thing?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int64
from torch import Tensor
from torchmetrics import Metric

from mmlab.adaptation.policy import Policy
from mmlab.batch import Batch
from mmlab.metrics.entities import OUTSIDE, EntityScores, spans
from mmlab.metrics.text import TextMetrics, TextScore
from mmlab.models.crf import TagField
from mmlab.models.word_tagger import WordTagger, by_sample
from mmlab.objectives.loss import Loss, mean_of
from mmlab.optim import Optimization
from mmlab.tasks.base import BaseTask
from mmlab.tasks.generative import Answer, beside


class ExtractionTask(BaseTask):
    """Tags every word of a text, with or without a picture beside it.

    The right tags are the references of a sample, one for each word in their order
    (`data.loading.references: [json.tags]`). A sample without any is not scored.

    Args:
        model: It gives as many tags.
        tags: All there are, by BIO, BIOES or BILOU.
        optimization: Optimizer and learning-rate schedule.
        adaptation: Which parameters are trained.
        crf: Learn what may follow what (:class:`~mmlab.models.crf.TagField`), and decode whole sentences.
        scores: What it is measured by; None: precision, recall and F1 of entities.

    Raises:
        ValueError: A tag is none or there twice, or the model gives more or fewer.
    """

    model: WordTagger

    def __init__(
        self,
        model: WordTagger,
        *,
        tags: list[str],
        optimization: Optimization,
        adaptation: Policy,
        crf: bool = False,
        scores: list[TextScore] | None = None,
    ) -> None:
        super().__init__(model, optimization=optimization, adaptation=adaptation)
        self.tags = _numbered(tags, given=model.tags)
        self.field = TagField(len(tags)) if crf else None
        self.scores = [EntityScores()] if scores is None else scores

    def losses(self, batch: Batch) -> dict[str, Loss]:
        """Mean over all words of -log p of the right tag, or of the sentence's right tags."""
        if not batch.references:
            raise ValueError("no tags to learn from: set data.loading.references (`[json.tags]`)")
        emission, there = self._emission(batch)
        right, known = tag_numbers(batch, there, self.tags)
        there = there & known[:, None]
        if self.field is not None:
            losses = self.field(emission, there, right)
        else:
            words = F.cross_entropy(emission.transpose(1, 2), right, reduction="none")
            losses = words.masked_fill(~there, 0).sum(dim=1)
        return {"tags": mean_of(losses, there.sum(dim=1).float(), batch.place)}

    def _emission(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits of each word of each sample, and which words there are."""
        logits = self(batch)
        assert batch.text is not None, "the model has read words"
        return by_sample(logits, batch.text)

    def make_metrics(self) -> Metric:
        """The scores of this task."""
        return TextMetrics(self.scores)

    def update_metrics(self, metrics: Metric, batch: Batch) -> None:
        """Keep the tags of a batch beside the right ones."""
        answers = self.predict(batch)
        told = beside(answers, batch)
        for answer, one in zip(answers, told, strict=True):
            check_tags(answer.key, one.references, len(one.prediction.split()), self.tags)
        metrics.update(
            [one._replace(references=(" ".join(one.references),)) if one.references else one for one in told]
        )

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Answer]:
        """The tags of each valid sample, joined by spaces."""
        emission, there = self._emission(batch)
        told = emission.argmax(dim=2) if self.field is None else self.field(emission, there)
        place, valid = batch.place.tolist(), batch.valid.tolist()
        return [
            Answer(number, batch.keys[number], place[number], text)
            for number, text in enumerate(_joined(told, there, list(self.tags)))
            if valid[number]
        ]


def _joined(
    told: Int64[Tensor, "samples words"], there: Bool[Tensor, "samples words"], tags: Sequence[str]
) -> list[str]:
    """The tags of each sample, joined by spaces."""
    rows = zip(told.tolist(), there.sum(dim=1).tolist(), strict=True)
    return [" ".join(tags[number] for number in row[:count]) for row, count in rows]


def _numbered(tags: Sequence[str], *, given: int) -> dict[str, int]:
    """The number of each tag; the model gives so many."""
    spans(tags)
    if given != len(tags):
        raise ValueError(f"the model gives {given} tags, there are {len(tags)}: set both alike")
    for number, tag in enumerate(tags):
        if tag in tags[:number] or len(tag.split()) != 1:
            raise ValueError(f"tags: {tag!r} is there twice, or has a space: correct it")
    return {tag: number for number, tag in enumerate(tags)}


def tag_numbers(
    batch: Batch, there: Bool[Tensor, "samples words"], tags: dict[str, int]
) -> tuple[Int64[Tensor, "samples words"], Bool[Tensor, " samples"]]:
    """The right tags of each sample, any behind the end, and which samples have tags.

    Raises:
        ValueError: A sample has more or fewer tags than words, or one that is not in the list.
    """
    counts, valid = there.sum(dim=1).tolist(), batch.valid.tolist()
    right = torch.full(there.shape, tags.get(OUTSIDE, 0), dtype=torch.int64)
    has = [bool(known) and valid[number] for number, known in enumerate(batch.references)]
    for number, (key, known) in enumerate(zip(batch.keys, batch.references, strict=True)):
        if has[number]:
            check_tags(key, known, counts[number], tags)
            right[number, : len(known)] = torch.tensor([tags[tag] for tag in known], dtype=torch.int64)
    return right.to(there.device), torch.tensor(has, device=there.device)


def check_tags(key: str, known: Sequence[str], words: int, tags: dict[str, int]) -> None:
    """Raise ValueError unless a sample has no tags at all, or one of the list for each word."""
    if known and len(known) != words:
        raise ValueError(
            f"sample {key!r} has {words} words and {len(known)} tags: name the fields of both "
            "(data.text.init_args.field, data.loading.references), or correct it"
        )
    for tag in known:
        if tag not in tags:
            raise ValueError(
                f"sample {key!r}: the tag {tag!r} is none of {', '.join(tags)}: add it, or correct it"
            )
