"""What disturbs a training of the tests: steps that take time, ranks that hang or kill themselves."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from mmlab.batch import Batch


class Disturbed(Callback):
    """Takes time for each step, writes down what each step saw, and does something bad once.

    Args:
        folder: `steps-rank<R>.jsonl` is written here, a line a step with its attempt.
        seconds: That a step takes at least.
        kind: `none`, `hang` (sleeps for ever), `kill` (SIGKILL to itself) or `raise`.
        step: After which it does so, in rank 1 (0 where there is but one).
        always: Whether it does so in every attempt, not only in the first.
    """

    def __init__(
        self, folder: str, *, seconds: float = 0.3, kind: str = "none", step: int = 10, always: bool = False
    ) -> None:
        self.folder = Path(folder)
        self.seconds = seconds
        self.kind = kind
        self.step = step
        self.always = always

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        time.sleep(self.seconds)
        line = {
            "attempt": int(os.environ.get("SLURM_RESTART_COUNT", "0")),
            "step": trainer.global_step - 1,
            "keys": batch.keys,
            "loss": trainer.callback_metrics["train/loss"].item(),
            "ranks": trainer.world_size,
        }
        with (self.folder / f"steps-rank{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        mark = self.folder / f"done-rank{trainer.global_rank}"
        last = trainer.global_rank == trainer.world_size - 1
        if self.kind == "none" or trainer.global_step != self.step or not last:
            return
        if mark.exists() and not self.always:
            return
        mark.touch()
        if self.kind == "raise":
            raise RuntimeError("made on purpose")
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(10_000)
