"""Progress for logs: a line now and then, where no terminal can redraw a bar."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar

SHOWN = ("train/loss", "train/samples_per_second", "train/data_wait")
EVERY = 60.0
"""Seconds from one line to the next, where neither a validation nor an epoch ends before."""


class ProgressLines(ProgressBar):
    """Prints epoch, step, the main numbers and the time left, on rank zero.

    A line comes at the end of every validation and every epoch, and each minute between, in evaluation too:
    who reads the log of a job sees that it goes on, and how.
    """

    def __init__(self) -> None:
        super().__init__()
        self._started = self._said = time.monotonic()
        self._first_step = self._said_step = 0

    def disable(self) -> None:
        """Lightning calls this on the other ranks, and fails where it is missing; rank zero alone prints."""

    def enable(self) -> None:
        """See `disable`."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock; a resumed run starts it in the middle."""
        self._started = self._said = time.monotonic()
        self._first_step = self._said_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Say where training stands, when a minute has gone."""
        if time.monotonic() - self._said >= EVERY:
            self._say(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say what it found."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._say(trainer)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Say how far validation is."""
        self._say_batch(trainer, "validation", batch_idx, trainer.num_val_batches[dataloader_idx])

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Say how far the test is."""
        self._say_batch(trainer, "test", batch_idx, trainer.num_test_batches[dataloader_idx])

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Say how far prediction is."""
        self._say_batch(trainer, "predict", batch_idx, trainer.num_predict_batches[dataloader_idx])

    def _say_batch(self, trainer: L.Trainer, name: str, batch: int, total: int | float) -> None:
        now = time.monotonic()
        if now - self._said >= EVERY:
            self._said = now
            if trainer.is_global_zero:
                print(f"{name}  batch {batch + 1}/{total}", file=sys.stderr, flush=True)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say where training stands, unless its validation just has."""
        trainer.callback_metrics  # noqa: B018  (what is asked for below is computed by all ranks together)
        if trainer.global_step != self._said_step:
            self._say(trainer)

    def _say(self, trainer: L.Trainer) -> None:
        self._said, self._said_step = time.monotonic(), trainer.global_step
        if not trainer.is_global_zero:
            return
        total = int(trainer.estimated_stepping_batches)
        done = trainer.global_step - self._first_step
        left = (self._said - self._started) / max(1, done) * max(0, total - trainer.global_step)
        numbers = "  ".join(
            f"{name} {float(value):.3g}"
            for name in (*SHOWN, *_monitored(trainer))
            if (value := trainer.callback_metrics.get(name)) is not None
        )
        print(
            f"epoch {trainer.current_epoch + 1}  step {trainer.global_step}/{total}  {numbers}  "
            f"{int(left) // 60}:{int(left) % 60:02d} left",
            file=sys.stderr,
            flush=True,
        )


def _monitored(trainer: L.Trainer) -> list[str]:
    """The score that checkpoints are chosen by."""
    found = (one.monitor for one in trainer.checkpoint_callbacks if isinstance(one, ModelCheckpoint))
    return list(dict.fromkeys(name for name in found if name is not None))
