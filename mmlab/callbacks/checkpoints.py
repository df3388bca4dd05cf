"""Which checkpoints a run keeps: the best, and always the newest."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint


class Checkpoints(ModelCheckpoint):
    """Lightning's, with a `last.ckpt` that is what its name says.

    Lightning 2.6 writes it only where the score is among the best too: a run that was best early, and is
    killed late, would go on from early. Here it is written whenever the score is looked at, and at the end.
    """

    @property
    def state_key(self) -> str:
        """Lightning's own: by it its state is found again in checkpoints."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep what is to be kept at the end of an epoch."""
        super().on_train_epoch_end(trainer, pl_module)
        if self._should_save_on_train_epoch_end(trainer):
            self._keep_newest(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep what is to be kept after a validation."""
        super().on_validation_end(trainer, pl_module)
        if not self._should_save_on_train_epoch_end(trainer):
            self._keep_newest(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the weights that training ended with."""
        super().on_train_end(trainer, pl_module)
        self._keep_newest(trainer)

    def _keep_newest(self, trainer: L.Trainer) -> None:
        if not self._should_skip_saving_checkpoint(trainer):  # it has not just been written
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
