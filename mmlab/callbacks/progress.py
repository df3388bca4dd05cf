"""Progress for logs: one line for each epoch, where no terminal can redraw a bar."""

from __future__ import annotations

import sys
import time

import lightning as L
from lightning.pytorch.callbacks import ProgressBar

SHOWN = ("train/loss", "val/mean_recall", "train/samples_per_second", "train/data_wait")


class ProgressLines(ProgressBar):
    """Prints epoch, step, the main numbers and the time left, once for each epoch, on rank zero."""

    def __init__(self) -> None:
        super().__init__()
        self._started = 0.0
        self._first_step = 0

    def disable(self) -> None:
        """Lightning calls this on the other ranks, and fails where it is missing; rank zero alone prints."""

    def enable(self) -> None:
        """See `disable`."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock; a resumed run starts it in the middle."""
        self._started = time.monotonic()
        self._first_step = trainer.global_step

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say where training stands."""
        if not trainer.is_global_zero:
            return
        total = int(trainer.estimated_stepping_batches)
        done = trainer.global_step - self._first_step
        left = (time.monotonic() - self._started) / max(1, done) * max(0, total - trainer.global_step)
        numbers = "  ".join(
            f"{name} {float(value):.3g}"
            for name in SHOWN
            if (value := trainer.callback_metrics.get(name)) is not None
        )
        print(
            f"epoch {trainer.current_epoch + 1}  step {trainer.global_step}/{total}  {numbers}  "
            f"{int(left) // 60}:{int(left) % 60:02d} left",
            file=sys.stderr,
            flush=True,
        )
