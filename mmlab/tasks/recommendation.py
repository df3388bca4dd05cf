"""Recommendation: what will this user like next?"""

from __future__ import annotations

import logging
from typing import NamedTuple

import torch
from torchmetrics import Metric

from mmlab.adaptation.policy import Policy
from mmlab.batch import NOBODY, USER, Batch, Embeddings
from mmlab.metrics.recommendation import RecommendationMetrics
from mmlab.models.recommender import Recommender
from mmlab.objectives.loss import Loss
from mmlab.objectives.ranking import RankingObjective
from mmlab.optim import Optimization
from mmlab.tasks.base import BaseTask

_log = logging.getLogger(__name__)


class Vectors(NamedTuple):
    """Users and items, a row for each sample that is one."""

    user: Embeddings
    item: Embeddings


class RecommendationTask(BaseTask):
    """Brings users near to what they chose, and ranks everything that is offered for each.

    Samples are as the sources of recommendation write them: training samples have an item and who chose it, a
    user's number or a history or both, those of evaluation an item, or a user with
    `data.loading.references: [json.wanted]`.

    Args:
        model: Users and items.
        objective: The loss of what was chosen among what others chose.
        optimization: Optimizer and learning-rate schedule.
        adaptation: Which parameters are trained.
    """

    model: Recommender

    def __init__(
        self,
        model: Recommender,
        *,
        objective: RankingObjective,
        optimization: Optimization,
        adaptation: Policy,
    ) -> None:
        super().__init__(model, optimization=optimization, adaptation=adaptation)
        self.objective = objective
        self._looked = False

    def losses(self, batch: Batch) -> dict[str, Loss]:
        """The loss of the objective."""
        found = self(batch)
        self.model.see(found)
        if not self._looked:  # at the first batch alone: to look is to wait for the device
            self._looked = True
            if bool((found.user.group == NOBODY).all()):
                _log.warning(
                    "a batch of %d samples teaches nothing: none has both an item and who chose it (`user` "
                    "or `history`); the first is %s", len(batch.keys), batch.keys[0],
                )  # fmt: skip
        loss = self.objective(
            found.user,
            found.item,
            chooser=found.chooser,
            log_share=found.log_share,
            history=found.history,
        )
        return {"ranking": loss}

    def make_metrics(self) -> Metric:
        """Full ranking, new items apart."""
        return RecommendationMetrics()

    def update_metrics(self, metrics: Metric, batch: Batch) -> None:
        """Keep the vectors of a batch."""
        metrics.update(self(batch), batch)

    @torch.no_grad()
    def predict(self, batch: Batch) -> Vectors:
        """The vectors of a batch: cosines say what a user likes."""
        found = self(batch)
        assert batch.signal is not None
        user = batch.signal.data[:, USER].masked_fill(~batch.valid, NOBODY)
        return Vectors(found.user._replace(group=user), found.item)
