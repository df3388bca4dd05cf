"""Cross-modal retrieval: which image, text or sound belongs to this one of another modality?"""

from __future__ import annotations

from itertools import combinations

from torchmetrics import Metric

from mmlab.adaptation.policy import Policy
from mmlab.batch import Batch, Modality
from mmlab.metrics.retrieval import RetrievalMetrics
from mmlab.models.dual_encoder import DualEncoder
from mmlab.objectives.contrastive import ContrastiveObjective
from mmlab.objectives.loss import Loss
from mmlab.optim import Optimization
from mmlab.tasks.base import BaseTask

Pair = tuple[str, str]
"""Names of two modalities."""


class RetrievalTask(BaseTask):
    """Trains towers so that what belongs together lies together, and ranks all candidates for each query.

    Args:
        model: The towers.
        objective: The loss of one pair of modalities; the losses of all pairs are added.
        optimization: Optimizer and learning-rate schedule.
        adaptation: Which parameters are trained.
        pairs: The pairs of modalities to align; default: every pair of towers. A tower in no pair is not
            trained.
        evaluate_pairs: The pairs to rank, in both directions; default: every pair of towers.

    Raises:
        ValueError: If a pair names a modality without a tower, or one modality twice.
    """

    model: DualEncoder

    def __init__(
        self,
        model: DualEncoder,
        *,
        objective: ContrastiveObjective,
        optimization: Optimization,
        adaptation: Policy,
        pairs: list[Pair] | None = None,
        evaluate_pairs: list[Pair] | None = None,
    ) -> None:
        every: list[Pair] = list(combinations(model.modalities, 2))
        pairs = every if pairs is None else pairs
        evaluate_pairs = every if evaluate_pairs is None else evaluate_pairs
        for pair in [*pairs, *evaluate_pairs]:
            if pair[0] == pair[1] or not set(pair) <= set(model.modalities):
                raise ValueError(
                    f"the pair {pair[0]}, {pair[1]} needs two different towers of this model, which has "
                    f"{', '.join(model.modalities)}"
                )
        for modality, tower in model.towers():
            if not any(modality in pair for pair in pairs):
                # It would get no gradient, which DDP refuses.
                tower.requires_grad_(False)
        super().__init__(model, optimization=optimization, adaptation=adaptation)
        self.objective = objective
        self.pairs = [(Modality(a), Modality(b)) for a, b in pairs]
        self.evaluate_pairs = [(Modality(a), Modality(b)) for a, b in evaluate_pairs]

    def losses(self, batch: Batch) -> dict[str, Loss]:
        """One contrastive loss for each pair."""
        output = self(batch)
        return {f"{a}_{b}": self.objective(output.get(a), output.get(b)) for a, b in self.pairs}

    def make_metrics(self) -> Metric:
        """Ranking metrics of both directions of each pair."""
        return RetrievalMetrics([d for a, b in self.evaluate_pairs for d in ((a, b), (b, a))])

    def update_metrics(self, metrics: Metric, batch: Batch) -> None:
        """Keep the embeddings of a batch."""
        metrics.update(self(batch), batch)
