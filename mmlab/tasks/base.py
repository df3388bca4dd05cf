"""What all tasks share: every step, the life of the metrics, the optimizer, what is trained."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torchmetrics import Metric

from mmlab.adaptation.policy import Policy
from mmlab.batch import Batch
from mmlab.objectives.loss import Loss, losses_by_source
from mmlab.optim import Optimization


class BaseTask(L.LightningModule, ABC):
    """A model under training: a leaf says what is minimised and what is measured, the rest is here.

    A leaf answers `losses`, `make_metrics` and `update_metrics`; it defines no step.

    Args:
        model: Called with a :class:`mmlab.batch.Batch`.
        optimization: Optimizer and learning-rate schedule.
        adaptation: Which parameters are trained.
    """

    metrics: Metric
    """Of the evaluation that runs or ran last."""
    results: dict[str, float]
    """What the last evaluation gave, as it is logged but not rounded to float32."""

    def __init__(self, model: nn.Module, *, optimization: Optimization, adaptation: Policy) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = adaptation.apply(model)
        self.optimization = optimization
        self.adaptation = adaptation

    @abstractmethod
    def losses(self, batch: Batch) -> Mapping[str, Tensor | Loss]:
        """What is minimised: the sum of these. Each is logged under its name.

        A scalar will do. A :class:`~mmlab.objectives.loss.Loss` says besides what each sample adds to it, so
        that the loss of each source is known even where sources are mixed within a batch.
        """

    @abstractmethod
    def make_metrics(self) -> Metric:
        """A fresh metric whose `compute` returns `{name: number}`."""

    @abstractmethod
    def update_metrics(self, metrics: Metric, batch: Batch) -> None:
        """Add one evaluation batch to the metric; one that knows sources takes them from the batch."""

    def on_fit_start(self) -> None:
        """Set the modes: Lightning leaves those it finds, and pretrained models come in evaluation mode."""
        self.train()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed dropout by the step, so that a resumed run draws what it would have drawn."""
        step = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
        seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
        torch.manual_seed((seed * 1_000_003 + step) * 65_537 + self.global_rank)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Sum the losses of a batch."""
        losses = {
            name: loss if isinstance(loss, Loss) else Loss(loss) for name, loss in self.losses(batch).items()
        }
        total = torch.stack([loss.value for loss in losses.values()]).sum()
        # A rank's value is its part of the global loss: the mean over ranks is what is minimised.
        self.log("train/loss", total, prog_bar=True, batch_size=len(batch), sync_dist=True)
        if len(losses) > 1:
            parts = {f"train/loss/{name}": loss.value for name, loss in losses.items()}
            self.log_dict(parts, batch_size=len(batch), sync_dist=True)
        if batch.sources:
            self._log_sources(losses, batch, batch_idx)
        return total

    def _log_sources(self, losses: Mapping[str, Loss], batch: Batch, batch_idx: int) -> None:
        """Log `train/loss@source` where Lightning logs this step; other steps cost nothing."""
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        ends_step = (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0
        if every == 0 or (self.global_step + 1) % every != 0 or not ends_step or not self.loggers:
            return
        values = {f"train/{name}": value for name, value in losses_by_source(losses, batch).items()}
        # Not self.log: it would repeat the last value of a source at steps that have none of its samples.
        for logger in self.loggers:
            logger.log_metrics(values, step=self.global_step)

    def on_validation_epoch_start(self) -> None:
        """Start to measure."""
        self.metrics = self.make_metrics()

    def on_test_epoch_start(self) -> None:
        """Start to measure."""
        self.metrics = self.make_metrics()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure a batch."""
        self.update_metrics(self.metrics, batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure a batch."""
        self.update_metrics(self.metrics, batch)

    def on_validation_epoch_end(self) -> None:
        """Log what was measured, under `val/`."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log what was measured, under `test/`."""
        self._log_metrics("test")

    def _log_metrics(self, stage: str) -> None:
        # Every rank has the same numbers: the metric has gathered what it needs.
        self.results = {f"{stage}/{name}": float(value) for name, value in self.metrics.compute().items()}
        self.log_dict(self.results, sync_dist=True)

    def predict_step(self, batch: Batch, batch_idx: int) -> Any:
        """What the model makes of a batch."""
        return self.model(batch)

    def train(self, mode: bool = True) -> BaseTask:
        """Put in training mode what is trained; frozen parts stay as they are in evaluation."""
        super().train(mode)
        self.adaptation.set_mode(self.model)
        return self

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Build the optimizer over what is trained, and its schedule over all steps of the fit."""
        trained = (item for item in self.named_parameters() if item[1].requires_grad)
        optimizer = self.optimization.build_optimizer(trained)
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise ValueError("the learning rate needs an end: set trainer.max_epochs or trainer.max_steps")
        schedule = self.optimization.build_schedule(optimizer, int(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
