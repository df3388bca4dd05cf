"""The Weights & Biases run of a run directory."""

from __future__ import annotations

import os

import wandb
from lightning.pytorch.loggers import WandbLogger


class RunLogger(WandbLogger):
    """Writes into the run directory; offline, to be synced later, unless WANDB_MODE=online.

    Args:
        save_dir: The run directory.
        name: Name of the run.
        project: Project that it is synced to.
    """

    def __init__(self, save_dir: str, *, name: str, project: str = "mmlab") -> None:
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
