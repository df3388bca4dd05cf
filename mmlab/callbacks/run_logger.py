"""The Weights & Biases run of a run directory."""

from __future__ import annotations

import os

from lightning.pytorch.loggers import WandbLogger


class RunLogger(WandbLogger):
    """Writes into the run directory; offline, to be synced later, unless WANDB_MODE=online.

    Args:
        save_dir: The run directory.
        name: Name of the run.
        project: Project that it is synced to.
    """

    def __init__(self, save_dir: str, *, name: str, project: str = "mmlab") -> None:
        offline = os.environ.get("WANDB_MODE", "offline") != "online"
        super().__init__(save_dir=save_dir, name=name, project=project, offline=offline)
        # Lightning always passes this setting, and wandb always warns that it means nothing any more.
        self._wandb_init.pop("anonymous", None)
