"""Writes into the run directory what is needed to run the same again."""

from __future__ import annotations

from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Callback

from mmlab.runs.directory import describe_run


class RunRecord(Callback):
    """Records config, command, code, package versions and data digests before the first step.

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
