"""What tasks share in which a language model says the answer."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import torch
from torchmetrics import Metric

from mmlab import collectives
from mmlab.adaptation.policy import Policy
from mmlab.batch import NOBODY, Batch
from mmlab.metrics.text import TextMetrics, TextScore
from mmlab.models.decoding import Decoding
from mmlab.models.multimodal_lm import MultimodalLM
from mmlab.objectives.loss import Loss
from mmlab.objectives.sequence import TokenCrossEntropy
from mmlab.optim import Optimization
from mmlab.tasks.base import BaseTask

_DECODING = Decoding()


class Answer(NamedTuple):
    """What the model said of one sample."""

    sample: int
    """Number in its batch."""
    key: str
    place: int
    """See :attr:`mmlab.batch.Batch.place`."""
    text: str


class GenerativeTask(BaseTask):
    """Trains a language model to say answers, and measures what it says; a leaf says by what.

    Args:
        model: The language model and what it sees and hears.
        optimization: Optimizer and learning-rate schedule.
        adaptation: Which parameters are trained.
        scores: What answers are measured by; None: what is usual for the task.
        objective: The loss of the tokens to be said.
        decoding: How answers are generated in evaluation.
    """

    model: MultimodalLM

    def __init__(
        self,
        model: MultimodalLM,
        *,
        optimization: Optimization,
        adaptation: Policy,
        scores: list[TextScore] | None = None,
        objective: TokenCrossEntropy | None = None,
        decoding: Decoding = _DECODING,
    ) -> None:
        super().__init__(model, optimization=optimization, adaptation=adaptation)
        self.objective = TokenCrossEntropy() if objective is None else objective
        self.scores = self.usual_scores() if scores is None else scores
        self.decoding = decoding

    @abstractmethod
    def usual_scores(self) -> list[TextScore]:
        """What answers of this task are measured by."""

    def losses(self, batch: Batch) -> dict[str, Loss]:
        """The loss of the answers' tokens."""
        return {"answer": self.objective(self(batch))}

    def make_metrics(self) -> Metric:
        """The scores of this task."""
        return TextMetrics(self.scores)

    def update_metrics(self, metrics: Metric, batch: Batch) -> None:
        """Generate answers, and keep them beside what they may be."""
        answers = self.predict(batch)
        metrics.update(
            [answer.text for answer in answers],
            [batch.references[answer.sample] if batch.references else () for answer in answers],
            torch.tensor([answer.place for answer in answers], dtype=torch.int64),
            [str(int(batch.group[answer.sample])) for answer in answers],
        )

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Answer]:
        """What the model says of each valid sample."""
        assert batch.text is not None, "a prompt is text"
        language = self.model.language
        sharded = self.device_mesh is not None and collectives.world_size() > 1
        ids = self.model.generate(batch, settings=self.decoding.settings(language.backbone), together=sharded)
        return [
            Answer(owner, batch.keys[owner], int(batch.place[owner]), language.decode(row))
            for owner, row in zip(batch.text.owner.tolist(), ids, strict=True)
            if owner != NOBODY and bool(batch.valid[owner])
        ]
