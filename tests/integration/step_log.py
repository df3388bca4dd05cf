"""A callback that writes down every step as it ends: which samples, which pixels, which loss."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from mmlab.batch import Batch


class StepLog(Callback):
    """One line of JSON a step in `<folder>/rank<number>.jsonl`, there even if the process is killed."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        assert batch.image is not None
        line = {
            "step": trainer.global_step - 1,
            "loss": trainer.callback_metrics["train/loss"].item(),
            "keys": batch.keys,
            "pixels": [zlib.crc32(row.contiguous().numpy().tobytes()) for row in batch.image.data],
        }
        with (self.folder / f"rank{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
