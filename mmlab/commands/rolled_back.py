"""Training that goes back to a checkpoint when weights would be no numbers any more, in the same process."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer

from mmlab.callbacks.non_finite import RollBack
from mmlab.commands.resume import continue_logs, read_start


def fit(trainer: Trainer, settings: dict[str, Any]) -> None:
    """Train, as often as it takes; all ranks go back together.

    Args:
        trainer: Whose callbacks may raise :class:`RollBack`.
        settings: Of its `fit`.
    """
    while True:
        try:
            return trainer.fit(**settings)
        except RollBack as back:
            settings = settings | {"ckpt_path": back.checkpoint, "weights_only": True}
            if trainer.is_global_zero:
                continue_logs(trainer.loggers, read_start(back.checkpoint))
