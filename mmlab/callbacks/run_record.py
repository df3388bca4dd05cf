"""Writes into the run directory what is needed to run the same again."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from mmlab.callbacks.spared import spare_text, spared
from mmlab.runs.directory import describe_run
from mmlab.tasks.base import BaseTask


class RunRecord(Callback):
    """Records config, command, code, packages, data digests and what is trained, before the first step.

    Args:
        directory: The run directory.
        config: The resolved configuration as YAML.
    """

    def __init__(self, directory: Path, config: str) -> None:
        self.directory = directory
        self.config = config
        self._written = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Write the record; the data module is set up by now."""
        if trainer.is_global_zero:
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            # Before the first step a full disk ends the run; a test after training can do without.
            with spared(self.directory / "run.json") if self._written else nullcontext():
                describe_run(self.directory, self.config, data.digests())
            self._written = True
            if stage == "fit" and isinstance(pl_module, BaseTask):
                parts = [part._asdict() for part in pl_module.adaptation.describe(pl_module.model)]
                spare_text(self.directory / "trained.json", json.dumps(parts, indent=1) + "\n")
