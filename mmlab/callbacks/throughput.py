"""How fast training goes, and what share of the time it waits for data."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from mmlab import collectives
from mmlab.batch import Batch

REPORT_EVERY = 10
"""Steps."""


class Throughput(Callback):
    """Logs `train/samples_per_second` (all ranks) and `train/data_wait` (share of the wall time).

    The wait is the time from the end of one step to the start of the next: fetching the batch, collating
    where no worker does, and copying it to the device. Validation between two steps is left out.
    """

    def __init__(self) -> None:
        self._restart()

    def _restart(self) -> None:
        self._samples = 0
        self._waiting = 0.0
        self._working = 0.0
        self._mark: float | None = None

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count from here."""
        self._restart()
        self._mark = time.perf_counter()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """The batch has come: what passed since the last step was waiting."""
        now = time.perf_counter()
        if self._mark is not None:
            self._waiting += now - self._mark
        self._mark = now

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """The step is done."""
        now = time.perf_counter()
        if self._mark is not None:
            self._working += now - self._mark
        self._mark = now
        self._samples += len(batch)
        elapsed = self._working + self._waiting
        if (batch_idx + 1) % REPORT_EVERY == 0 or trainer.is_last_batch:
            pl_module.log_dict(
                {
                    "train/samples_per_second": self._samples * collectives.world_size() / elapsed,
                    "train/data_wait": self._waiting / elapsed,
                },
                batch_size=len(batch),
            )

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Validation is no waiting for training data."""
        self._mark = None

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Training goes on."""
        self._mark = time.perf_counter()
