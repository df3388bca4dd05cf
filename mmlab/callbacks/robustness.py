"""How well does a model do with less and less? Its score against the share of modalities that are missing."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import lightning as L
import torch
import wandb
from lightning.pytorch.callbacks import Callback
from torchmetrics import Metric

from mmlab.batch import Batch
from mmlab.callbacks.chart import Point, curve
from mmlab.callbacks.run_logger import RunLogger
from mmlab.tasks.base import BaseTask


class RobustnessCurve(Callback):
    """Takes modalities from test samples at random, and writes `robustness.svg` and `robustness.json`.

    Each modality of each sample is missing with the same probability, up to a sample that has none. What is
    missing at a share is missing at every higher one, and the draws depend on the sample and the seed only:
    the curve is the same on any number of ranks.

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
        self._metrics: list[Metric] = []

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure each share apart."""
        assert isinstance(pl_module, BaseTask)
        self._metrics = [pl_module.make_metrics() for _ in self.shares]

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
        with trainer.precision_plugin.test_step_context():
            for share, metric in zip(self.shares, self._metrics, strict=True):
                pl_module.update_metrics(metric, without(batch, share, seed=self.seed))

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Bring all ranks together, and draw; the results of the test itself stand already.

        Raises:
            ValueError: The task has no such score.
        """
        found = [{name: float(value) for name, value in metric.compute().items()} for metric in self._metrics]
        self._metrics = []
        if self.score not in found[0]:
            raise ValueError(
                f"RobustnessCurve: the task has no score {self.score!r}: set score to one of "
                f"{', '.join(name for name in found[0] if '@' not in name)}"
            )
        if trainer.is_global_zero:
            self._write(trainer, found)

    def _write(self, trainer: L.Trainer, found: Sequence[dict[str, float]]) -> None:
        points = [
            Point(share, *(one.get(self.score + end, one[self.score]) for end in ("", "_low", "_high")))
            for share, one in zip(self.shares, found, strict=True)
        ]
        folder = Path(trainer.default_root_dir)
        records: list[dict[str, float | None]] = [
            {"missing": share, **{name: _finite(value) for name, value in one.items() if "@" not in name}}
            for share, one in zip(self.shares, found, strict=True)
        ]
        (folder / "robustness.json").write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
        title = f"{self.score} where modalities are missing"
        drawn = curve(points, title=title, across="share of modalities that are missing", up=self.score)
        (folder / "robustness.svg").write_text(drawn, encoding="utf-8")
        for logger in trainer.loggers:
            if isinstance(logger, RunLogger):
                table = wandb.Table(columns=["missing", self.score], data=[[p.x, p.y] for p in points])
                line = wandb.plot.line(table, "missing", self.score, title=title)
                logger.experiment.log({"test/robustness": line}, commit=False)


def _finite(value: float) -> float | None:
    """As JSON holds it."""
    return None if math.isnan(value) else value


def without(batch: Batch, share: float, *, seed: int) -> Batch:
    """The batch, in which each modality of each sample is missing with a probability."""
    changed: dict[str, Any] = {}
    for modality, inputs in batch.inputs():
        gone = [Random(f"{seed}/{place}/{modality}").random() < share for place in batch.place.tolist()]
        changed[modality.value] = inputs.without(torch.tensor(gone, device=batch.place.device))
    return replace(batch, **changed)
