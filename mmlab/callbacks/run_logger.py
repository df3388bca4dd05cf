"""The Weights & Biases run of a run directory: one run, however often it begins again."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from mmlab.callbacks.history import Row, plain
from mmlab.callbacks.spared import spared
from mmlab.callbacks.wandb_segments import mend_segments
from mmlab.runs.directory import put_text

_FOLDER = "wandb"


class RunLogger(WandbLogger):
    """Writes into the run directory; offline, to be synced later, unless WANDB_MODE=online.

    A run that goes on has the id that it had, and numbers its rows where it left off. What was logged after
    the last checkpoint would be logged again by a run that goes on from it, and Weights & Biases cannot take
    rows back: so rows wait until a checkpoint holds their step. (`logs/metrics.csv` has them at once.)

    Args:
        save_dir: The run directory.
        name: Name of the run.
        project: Project that it is synced to.
        live: Send rows at once. A run that then goes on after a crash has the steps since its last checkpoint
            twice.
    """

    def __init__(self, save_dir: str, *, name: str, project: str = "mmlab", live: bool = True) -> None:
        # The service of a process that started or submitted this one. It may run on another machine, and
        # there a run whose process was killed stays "in use".
        os.environ.pop("WANDB_SERVICE", None)
        mode = os.environ.setdefault("WANDB_MODE", "offline")
        if mode == "online":
            try:
                wandb.login()
            except wandb.errors.UsageError as error:
                raise ValueError(
                    "WANDB_MODE=online, but nobody is logged in: run `wandb login`, or leave the mode out "
                    "and `wandb sync` later"
                ) from error
        super().__init__(save_dir=save_dir, name=name, project=project, offline=mode == "offline")
        # Lightning always passes this setting, and wandb always warns that it means nothing any more.
        self._wandb_init.pop("anonymous", None)
        if mode == "offline":
            self._wandb_init.pop("resume")  # wandb warns that it cannot ask a server
        self.live = live
        self._folder = Path(save_dir) / _FOLDER
        self._waiting: list[Row] = []
        self._sent = 0
        self._repeated = 0
        """Rows to come that had been sent before."""
        self._identified = False

    @rank_zero_only
    def go_on(self, rows: Sequence[Row]) -> None:
        """Go on with the run that the folder holds.

        Args:
            rows: All that was logged up to the checkpoint; what had not been sent is sent.
        """
        identity = self._folder / "id"
        if identity.exists():
            self._wandb_init["id"] = self._id = identity.read_text(encoding="utf-8").strip()
        sent = self._folder / "sent"
        number = sent.read_text(encoding="utf-8") if sent.exists() else ""
        self._sent = int(number) if number.isdecimal() else 0
        there = mend_segments(self._folder)
        if there is not None and not self.live:  # W&B may have lost what it was told
            self._sent = there
        self._waiting = list(rows[self._sent :])
        # A validation that comes again: its checkpoint was made before, and held its step.
        self._repeated = 0 if self.live else max(0, self._sent - len(rows))
        self.send()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log what was measured at a step."""
        if step is None:
            super().log_metrics(metrics)
            return
        self._remember_identity()
        self._waiting.append(Row(plain(metrics), step))
        if self.live:
            self.send()

    @rank_zero_only
    def send(self, before: int | None = None) -> None:
        """Send the rows that wait.

        Args:
            before: Those of steps below this one, which the newest checkpoint holds; None: all.
        """
        ready = [row for row in self._waiting if before is None or row.step < before]
        if not ready:
            return
        self._waiting = [row for row in self._waiting if before is not None and row.step >= before]
        known, self._repeated = self._repeated, max(0, self._repeated - len(ready))
        for row in ready[known:]:
            # A number of its own for each row: several are logged at one step, and one that is not above
            # the last would be dropped.
            self.experiment.log(row.metrics | {"trainer/global_step": row.step}, step=self._sent)
            self._sent += 1
        with spared(self._folder / "sent"):
            put_text(self._folder / "sent", str(self._sent))

    def _remember_identity(self) -> None:
        """Keep the id before anything is logged under it."""
        if self._identified:
            return
        self._identified = True
        with spared(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            put_text(self._folder / "id", str(self.experiment.id))

    @rank_zero_only
    def preempted(self) -> None:
        """Say that the run stops here and will go on."""
        self.experiment.mark_preempting()
        self.experiment.finish(exit_code=1)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Send what waits, where the run has come to its end."""
        if status == "success":
            self.send()
        super().finalize(status)
