"""How well does a model do with less and less? Its score against the share of modalities that are missing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import lightning as L
import torch
import wandb
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torchmetrics import Metric

from mmlab.batch import Batch, Modality
from mmlab.callbacks.chart import Point, curve
from mmlab.callbacks.run_logger import RunLogger
from mmlab.callbacks.spared import spare_text
from mmlab.tasks.base import BaseTask

MODELS = ("FusionClassifier", "WordTagger", "RelationClassifier", "Recommender")
"""Those that go by who owns a row, and are asked of as many samples whatever these lack. By their names: a
callback knows of a task what its base says."""


class RobustnessCurve(Callback):
    """Takes modalities from test samples at random, and writes `robustness.svg` and `robustness.json`.

    Each modality of each sample is missing with the same probability, up to a sample that has none. What is
    missing at a share is missing at every higher one, and the draws depend on the sample and the seed only:
    the curve is the same on any number of ranks. It is for models that go by who owns a row (:data:`MODELS`).
    A language model finds media by their places, and reads them all the same; in retrieval, what lacks a
    modality is no longer among those to be told apart, which makes it easier.

    Args:
        score: Which is drawn, as the table of results names it without `test/`.
        shares: Of modalities that are missing, in rising order.
        seed: Of the draws.

    Raises:
        ValueError: Shares that do not rise, or lie outside [0, 1].
    """

    def __init__(
        self,
        score: str = "accuracy",
        shares: Sequence[float] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
        seed: int = 0,
    ) -> None:
        if list(shares) != sorted(set(shares)) or not shares or shares[0] < 0 or shares[-1] > 1:
            raise ValueError(f"shares={list(shares)}: they rise from 0 to at most 1")
        self.score = score
        self.shares = tuple(shares)
        self.seed = seed
        self._metrics: dict[float, Metric] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse a task whose samples would not lack what is taken away, before anything runs.

        Raises:
            ValueError: Its model is none of :data:`MODELS`.
        """
        assert isinstance(pl_module, BaseTask)
        if not any(kind.__name__ in MODELS for kind in type(pl_module.model).__mro__):
            raise ValueError(
                f"RobustnessCurve is not for {type(pl_module).__name__}: its model is none of "
                f"{', '.join(MODELS)}: leave the callback out"
            )

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure each share apart; where nothing is missing the test itself does."""
        assert isinstance(pl_module, BaseTask)
        self._metrics = {share: pl_module.make_metrics() for share in self.shares if share > 0}

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Measure a batch with less and less."""
        assert isinstance(pl_module, BaseTask)
        # Lightning calls its hooks outside of the precision in which the test runs.
        draws = draw(batch, seed=self.seed)
        with trainer.precision_plugin.test_step_context():
            for share, metric in self._metrics.items():
                pl_module.update_metrics(metric, without(batch, share, draws))

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Bring all ranks together, and draw; the numbers are kept whatever is to be drawn.

        Raises:
            ValueError: The task has no such score.
        """
        assert isinstance(pl_module, BaseTask)
        metrics = [self._metrics.get(share, pl_module.metrics) for share in self.shares]
        found = [{name: float(value) for name, value in metric.compute().items()} for metric in metrics]
        self._metrics = {}
        if trainer.is_global_zero:
            self._keep(Path(trainer.default_root_dir), found)
        if self.score not in found[0]:
            raise ValueError(
                f"RobustnessCurve: the task has no score {self.score!r}: set score to one of "
                f"{', '.join(name for name in found[0] if '@' not in name)}"
            )
        if trainer.is_global_zero:
            self._draw(trainer, found)

    def _keep(self, folder: Path, found: Sequence[dict[str, float]]) -> None:
        records: list[dict[str, float | None]] = [
            {"missing": share, **{name: _finite(value) for name, value in one.items() if "@" not in name}}
            for share, one in zip(self.shares, found, strict=True)
        ]
        spare_text(folder / "robustness.json", json.dumps(records, indent=1) + "\n")

    def _draw(self, trainer: L.Trainer, found: Sequence[dict[str, float]]) -> None:
        points = [
            Point(share, *(one.get(self.score + end, one[self.score]) for end in ("", "_low", "_high")))
            for share, one in zip(self.shares, found, strict=True)
        ]
        title = f"{self.score} where modalities are missing"
        drawn = curve(points, title=title, across="share of modalities that are missing", up=self.score)
        spare_text(Path(trainer.default_root_dir) / "robustness.svg", drawn)
        for logger in trainer.loggers:
            if isinstance(logger, RunLogger):
                table = wandb.Table(columns=["missing", self.score], data=[[p.x, p.y] for p in points])
                line = wandb.plot.line(table, "missing", self.score, title=title)
                logger.experiment.log({"test/robustness": line}, commit=False)


def _finite(value: float) -> float | None:
    """As JSON holds it."""
    return None if math.isnan(value) else value


def draw(batch: Batch, *, seed: int) -> dict[Modality, Tensor]:
    """A number in [0, 1) for each modality of each sample, from its place and the seed.

    Who chose what (a signal of numbers of users and items) is what is told of, not a modality.
    """
    return {
        modality: torch.tensor(
            [Random(f"{seed}/{place}/{modality}").random() for place in batch.place.tolist()]
        )
        for modality, inputs in batch.inputs()
        if modality != Modality.SIGNAL or inputs.data.is_floating_point()
    }


def without(batch: Batch, share: float, draws: Mapping[Modality, Tensor]) -> Batch:
    """The batch, in which the modalities whose number is below the share are missing."""
    changed: dict[str, Any] = {
        modality.value: inputs.without((draws[modality] < share).to(batch.place.device))
        for modality, inputs in batch.inputs()
        if modality in draws
    }
    return replace(batch, **changed)
