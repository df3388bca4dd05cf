"""The report of named entities by type, as people know it from CoNLL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from mmlab.callbacks.spared import spare_text
from mmlab.metrics.entities import EntityScores, report


class EntityReport(Callback):
    """Prints precision, recall, F1 and support of each type after a test, and writes `report-test.txt`."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse a task that does not tell entities, before anything runs.

        Raises:
            ValueError: None of its scores is of entities.
        """
        scores = getattr(pl_module, "scores", ())
        if not any(isinstance(score, EntityScores) for score in scores):
            raise ValueError(
                f"EntityReport is not for {type(pl_module).__name__}, which has no scores of entities "
                "(mmlab.metrics.entities.EntityScores): leave the callback out"
            )

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print and write it."""
        metrics: Any = pl_module.metrics
        answered = [one for one in metrics.answered() if one.references]
        if not trainer.is_global_zero or not answered:
            return
        text = report(answered).text()
        print(text, flush=True)
        spare_text(Path(trainer.default_root_dir) / "report-test.txt", text)
