"""Writes into the run directory what is needed to run the same again."""

from __future__ import annotations

import json
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Callback

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

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Write the record; the data module is set up by now."""
        if trainer.is_global_zero:
            describe_run(self.directory, self.config, trainer.datamodule.digests())  # type: ignore[attr-defined]
            if stage == "fit" and isinstance(pl_module, BaseTask):
                parts = [part._asdict() for part in pl_module.adaptation.describe(pl_module.model)]
                (self.directory / "trained.json").write_text(json.dumps(parts, indent=1) + "\n")
