"""Named entities: which words of a text name a person, a place, a thing?"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Int64
from torch import Tensor
from torchmetrics import Metric

from mmlab.adaptation.policy import Policy
from mmlab.batch import Batch
from mmlab.metrics.entities import OUTSIDE, EntityScores, spans
from mmlab.metrics.text import TextMetrics, TextScore
from mmlab.models.crf import best_tags, negative_log_likelihood
from mmlab.models.word_tagger import Tagged, WordTagger
from mmlab.objectives.loss import Loss, mean_of
from mmlab.optim import Optimization
from mmlab.tasks.base import BaseTask
from mmlab.tasks.generative import Answer, beside


class ExtractionTask(BaseTask):
    """Tags every word of a text, with or without a picture beside it.

    The right tags are the references of a sample, one for each word in their order
    (`data.loading.references: [json.tags]`).

    Args:
        model: It gives as many tags; with `crf` whole sentences are trained and decoded.
        tags: All there are, by BIO, BIOES or BILOU.
        optimization: Optimizer and learning-rate schedule.
        adaptation: Which parameters are trained.
        scores: What it is measured by; None: precision, recall and F1 of entities.

    Raises:
        ValueError: A tag is none, or the model gives more or fewer.
    """

    model: WordTagger

    def __init__(
        self,
        model: WordTagger,
        *,
        tags: list[str],
        optimization: Optimization,
        adaptation: Policy,
        scores: list[TextScore] | None = None,
    ) -> None:
        super().__init__(model, optimization=optimization, adaptation=adaptation)
        spans(tags)
        self.tags = {tag: number for number, tag in enumerate(tags)}
        self.scores = [EntityScores()] if scores is None else scores
        if len(self.tags) != len(tags) or model.tags != len(tags):
            raise ValueError(f"the model gives {model.tags} tags, there are {len(self.tags)}: set both alike")

    def losses(self, batch: Batch) -> dict[str, Loss]:
        """Mean over all words of -log p of the right tag, or of the sentence's right tags."""
        if not batch.references:
            raise ValueError("no tags to learn from: set data.loading.references (`[json.tags]`)")
        said = self(batch)
        right = tag_numbers(batch, said, self.tags)
        if said.transitions is not None:
            losses = negative_log_likelihood(said.emission, right, said.there, said.transitions)
        else:
            words = F.cross_entropy(said.emission.transpose(1, 2), right, reduction="none")
            losses = words.masked_fill(~said.there, 0).sum(dim=1)
        return {"tags": mean_of(losses, said.there.sum(dim=1).float(), batch.place)}

    def make_metrics(self) -> Metric:
        """The scores of this task."""
        return TextMetrics(self.scores)

    def update_metrics(self, metrics: Metric, batch: Batch) -> None:
        """Keep the tags of a batch beside the right ones."""
        for key, known, valid in zip(batch.keys, batch.references, batch.valid.tolist(), strict=True):
            if valid:
                _check(key, known, self.tags)
        answered = [beside(said, batch) for said in self.predict(batch)]
        metrics.update([one._replace(references=(" ".join(one.references),)) for one in answered])

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Answer]:
        """The tags of each valid sample, joined by spaces."""
        said, names = self(batch), list(self.tags)
        if said.transitions is not None:
            told = best_tags(said.emission, said.there, said.transitions)
        else:
            told = said.emission.argmax(dim=2)
        counts, place, valid = (x.tolist() for x in (said.there.sum(dim=1), batch.place, batch.valid))
        return [
            Answer(
                number, batch.keys[number], place[number], " ".join(names[n] for n in row[: counts[number]])
            )
            for number, row in enumerate(told.tolist())
            if valid[number]
        ]


def tag_numbers(batch: Batch, said: Tagged, tags: dict[str, int]) -> Int64[Tensor, "samples words"]:
    """The right tags of each sample, :data:`OUTSIDE` or the first behind the end.

    Raises:
        ValueError: A sample has more or fewer tags than words, or one that is not in the list.
    """
    counts, valid = said.there.sum(dim=1).tolist(), batch.valid.tolist()
    right = torch.full(said.there.shape, tags.get(OUTSIDE, 0), dtype=torch.int64)
    for number, (key, known) in enumerate(zip(batch.keys, batch.references, strict=True)):
        if not valid[number]:
            continue
        if len(known) != counts[number]:
            raise ValueError(
                f"sample {key!r} has {counts[number]} words and {len(known)} tags: name the fields of both "
                "(data.text.init_args.field, data.loading.references), or correct it"
            )
        _check(key, known, tags)
        right[number, : len(known)] = torch.tensor([tags[tag] for tag in known], dtype=torch.int64)
    return right.to(said.there.device)


def _check(key: str, known: tuple[str, ...], tags: dict[str, int]) -> None:
    for tag in known:
        if tag not in tags:
            raise ValueError(
                f"sample {key!r}: the tag {tag!r} is none of {', '.join(tags)}: add it, or correct it"
            )
