"""Sentiment and emotion: what do words, voice and face say of how someone feels?"""

from __future__ import annotations

import torch
from torchmetrics import Metric

from mmlab.adaptation.policy import Policy
from mmlab.balance.balance import Balance, Criterion
from mmlab.batch import Batch
from mmlab.metrics.text import TextMetrics, TextScore
from mmlab.models.fusion_classifier import FusionClassifier
from mmlab.optim import Optimization
from mmlab.tasks.fused import FusionTask
from mmlab.tasks.generative import Answer, beside
from mmlab.tasks.outcome import Labelled, Outcome, Wanted


class SentimentTask(FusionTask):
    """Tells a class, a rank or a number of each sample, from whatever modalities it has.

    Labels are the first of each sample's references (`data.loading.references: [json.emotion]`).

    Args:
        model: Its head gives as many numbers as the outcome needs.
        outcome: What is told: `Classes`, `Ranks` or `Scale`.
        optimization: Optimizer and learning-rate schedule.
        adaptation: Which parameters are trained.
        scores: What it is measured by; None: what is usual for the outcome.
        balance: Keeps one modality from being learned at the expense of the others; None: nothing does.

    Raises:
        ValueError: The head gives more or fewer numbers, or the balance does not go with the model.
    """

    learned = "sentiment"

    def __init__(
        self,
        model: FusionClassifier,
        *,
        outcome: Outcome,
        optimization: Optimization,
        adaptation: Policy,
        scores: list[TextScore] | None = None,
        balance: Balance | None = None,
    ) -> None:
        super().__init__(model, optimization=optimization, adaptation=adaptation, balance=balance)
        self.outcome = outcome
        self.scores = outcome.usual_scores() if scores is None else scores
        if (found := model.head.classes) != (wanted := outcome.size):
            raise ValueError(
                f"the head has {found} classes, the outcome needs {wanted}: set classes to {wanted}"
            )

    def criterion(self, batch: Batch) -> Criterion:
        """The loss of the outcome."""
        if not batch.references:
            raise ValueError("no labels to learn from: set data.loading.references (`[json.emotion]`)")
        value, known = self.outcome.wanted(batch)
        return lambda logits, counts: self.outcome.loss(logits, Wanted(value, known & counts), batch.place)

    def make_metrics(self) -> Metric:
        """The scores, and how many samples have a label."""
        return TextMetrics([*self.scores, Labelled()])

    def update_metrics(self, metrics: Metric, batch: Batch) -> None:
        """Keep what is told of a batch beside its labels."""
        known = self.outcome.wanted(batch).known.tolist()
        told = self.predict(batch)
        pairs = zip(told, beside(told, batch), strict=True)
        metrics.update([one if known[said.sample] else one._replace(references=()) for said, one in pairs])

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Answer]:
        """What is told of each valid sample."""
        said = self(batch)
        place, valid = said.place.tolist(), said.valid.tolist()
        return [
            Answer(sample, batch.keys[sample], place[sample], text)
            for sample, text in enumerate(self.outcome.say(said.logits))
            if valid[sample]
        ]
