"""The end of a batch, in whatever stage: Lightning's four hooks as one."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from mmlab.runs.rank_page import Phase


class BatchEnds(Callback):
    """Calls `batch_ended` at the end of every batch, of training or of a pass over another split."""

    def batch_ended(self, trainer: L.Trainer, phase: Phase) -> None:
        """What is to be done then."""
        raise NotImplementedError

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A batch of training ends."""
        self.batch_ended(trainer, "train")

    # Lightning names what it passes; nothing of it is needed.
    def on_validation_batch_end(self, trainer: L.Trainer, *arguments: Any, **named: Any) -> None:
        """A batch of validation ends."""
        self.batch_ended(trainer, "val")

    def on_test_batch_end(self, trainer: L.Trainer, *arguments: Any, **named: Any) -> None:
        """A batch of a test ends."""
        self.batch_ended(trainer, "test")

    def on_predict_batch_end(self, trainer: L.Trainer, *arguments: Any, **named: Any) -> None:
        """A batch of which something is predicted ends."""
        self.batch_ended(trainer, "predict")
