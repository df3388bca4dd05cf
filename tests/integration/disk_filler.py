"""A disk that is full for a part of a run."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback


class DiskFiller(Callback):
    """Leaves no room on a disk from one step on, and gives it back at another."""

    def __init__(self, file: str, start: int, stop: int | None = None) -> None:
        """Settings.

        Args:
            file: What takes the room.
            start: Steps that are done before.
            stop: Steps after which it is removed; None: it stays.
        """
        self.file = Path(file)
        self.start = start
        self.stop = stop

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Fill it, or make room."""
        if trainer.global_step == self.start:
            self._fill()
        elif trainer.global_step == self.stop:
            self.file.unlink()

    def _fill(self) -> None:
        with self.file.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
