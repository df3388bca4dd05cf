"""Relations: what holds between two entities of a text, with or without a picture beside it?"""

from __future__ import annotations

import torch
from torchmetrics import Metric

from mmlab.adaptation.policy import Policy
from mmlab.batch import Batch
from mmlab.metrics.relations import RelationScores
from mmlab.metrics.text import TextMetrics, TextScore
from mmlab.models.relation_classifier import RelationClassifier
from mmlab.objectives.loss import Loss
from mmlab.optim import Optimization
from mmlab.tasks.base import BaseTask
from mmlab.tasks.generative import Answer, beside
from mmlab.tasks.outcome import Classes


class RelationTask(BaseTask):
    """Tells the relation between the head and the tail that are marked in a text.

    The relation is the first of a sample's references (`data.loading.references: [json.relation]`). A sample
    without any is not scored.

    Args:
        model: It gives as many relations.
        relations: All there are, with `none`.
        none: What stands for no relation, which scores leave out; None: there is no such.
        optimization: Optimizer and learning-rate schedule.
        adaptation: Which parameters are trained.
        weights: Of the loss of each relation, by its name; None: 1 each.
        scores: What it is measured by; None: precision, recall and F1 of relations, and accuracy.

    Raises:
        ValueError: A relation is there twice, `none` is not there, or the model gives more or fewer.
    """

    model: RelationClassifier

    def __init__(
        self,
        model: RelationClassifier,
        *,
        relations: list[str],
        none: str | None = "None",
        optimization: Optimization,
        adaptation: Policy,
        weights: dict[str, float] | None = None,
        scores: list[TextScore] | None = None,
    ) -> None:
        super().__init__(model, optimization=optimization, adaptation=adaptation)
        self.outcome = Classes(relations, weights=weights)
        self.scores = [RelationScores(none)] if scores is None else scores
        if none is not None and none not in relations:
            raise ValueError(
                f"none is {none!r}, which is no relation: add it to relations, or set it to null"
            )
        if model.relations != len(relations):
            raise ValueError(
                f"the model gives {model.relations} relations, there are {len(relations)}: set both alike"
            )

    def losses(self, batch: Batch) -> dict[str, Loss]:
        """Cross-entropy over the relations."""
        if not batch.references:
            raise ValueError("no relations to learn from: set data.loading.references (`[json.relation]`)")
        said = self(batch)
        return {"relation": self.outcome.loss(said.logits, self.outcome.wanted(batch), said.place)}

    def make_metrics(self) -> Metric:
        """The scores of this task."""
        return TextMetrics(self.scores)

    def update_metrics(self, metrics: Metric, batch: Batch) -> None:
        """Keep the relations of a batch beside the right ones."""
        self.outcome.wanted(batch)  # refuses a relation that is not in the list
        metrics.update(beside(self.predict(batch), batch))

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Answer]:
        """The likeliest relation of each valid sample."""
        said = self(batch)
        place, valid = said.place.tolist(), said.valid.tolist()
        told = self.outcome.say(said.logits)
        return [
            Answer(sample, batch.keys[sample], place[sample], text)
            for sample, text in enumerate(told)
            if valid[sample]
        ]
