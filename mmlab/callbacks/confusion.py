"""Which class is taken for which: a table of counts as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import wandb
from lightning.pytorch.callbacks import Callback

from mmlab.callbacks.chart import counts
from mmlab.callbacks.run_logger import RunLogger
from mmlab.callbacks.spared import spare_text
from mmlab.metrics.classification import confusion

_MOST = 50
"""Labels that a figure shows."""


class ConfusionFigure(Callback):
    """Writes `confusion-val.svg` and `confusion-test.svg` into the run directory, and a table for W&B.

    Args:
        labels: Their order in the figure; those that are not named follow.
    """

    def __init__(self, labels: Sequence[str] = ()) -> None:
        self.labels = tuple(labels)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the validation."""
        if not trainer.sanity_checking:
            self._draw(trainer, pl_module, "val")

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the test."""
        self._draw(trainer, pl_module, "test")

    def _draw(self, trainer: L.Trainer, pl_module: L.LightningModule, split: str) -> None:
        metrics: Any = pl_module.metrics
        answered = [one for one in metrics.answered() if one.references]
        if not trainer.is_global_zero or not answered:
            return
        table = confusion(answered, self.labels, limit=_MOST)
        drawn = counts(table.counts, table.labels, title="right (rows) and said (columns)")
        spare_text(Path(trainer.default_root_dir) / f"confusion-{split}.svg", drawn)
        for logger in trainer.loggers:
            if isinstance(logger, RunLogger):
                rows = [[label, *row] for label, row in zip(table.labels, table.counts, strict=True)]
                shown = wandb.Table(columns=["right", *table.labels], data=rows)
                logger.experiment.log({f"{split}/confusion": shown}, commit=False)
