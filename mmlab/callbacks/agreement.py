"""Ranks stop together when one of them is told to: they ask each other every few steps."""

from __future__ import annotations

import time
from types import FrameType
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from mmlab import collectives

SECONDS = 5.0
"""A rank that is told to stop need not wait much longer for the others to hear of it."""


class Agreement(Callback):
    """Stops all ranks at the same step after SIGTERM to any of them, with a checkpoint as in one process.

    Lightning broadcasts a tensor of the device before every step and reads it, which waits until the GPU has
    done all that was queued (Lightning issue 21487), hears rank 0 only, and starts another broadcast inside
    the signal handler, where it may meet any other collective. Here the handler takes a note, and ranks
    compare notes over the CPU group, which a GPU does not wait for. In one process all is left to Lightning,
    which stops after the step.

    Args:
        every_n_steps: How often at most; slow steps are asked about more often, see :data:`SECONDS`.
    """

    def __init__(self, every_n_steps: int = 32) -> None:
        self.every_n_steps = every_n_steps
        self._told = False
        self._steps = 0
        self._interval = 1
        self._mark = 0.0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Take the place of Lightning's broadcasts, in this trainer only."""
        if trainer.world_size == 1:
            return
        self._told, self._steps, self._interval, self._mark = False, 0, 1, time.perf_counter()
        # Handlers are registered after this, and looked up here.
        trainer._signal_connector._sigterm_notifier_fn = self._note  # type: ignore[assignment, method-assign]
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _do_nothing  # type: ignore[method-assign]

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._told = True

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ask, if it is time."""
        self._count(trainer)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Ask, if it is time."""
        self._count(trainer)

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Ask, if it is time."""
        self._count(trainer)

    def _count(self, trainer: L.Trainer) -> None:
        if trainer.world_size == 1:
            return
        self._steps += 1
        if self._steps == self._interval:
            self._ask(trainer)

    def _ask(self, trainer: L.Trainer) -> None:
        """Learn whether any rank was told to stop, and agree when to ask again; every rank must call this."""
        now = time.perf_counter()
        notes = torch.tensor([float(self._told), (now - self._mark) / self._steps], dtype=torch.float64)
        dist.all_reduce(notes, dist.ReduceOp.MAX, group=collectives.cpu_group())
        told, seconds = notes.tolist()
        self._steps, self._mark = 0, now
        self._interval = max(1, min(self.every_n_steps, int(SECONDS / seconds)))
        if told:
            # Lightning's loops look here after this hook, and stop.
            trainer._signal_connector.received_sigterm = True

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Let a checkpoint be saved, which waits for all ranks: all have come here, and it is saved last."""
        if trainer.world_size > 1 and isinstance(exception, SIGTERMException):
            for callback in trainer.checkpoint_callbacks:
                if isinstance(callback, ModelCheckpoint):
                    callback.save_on_exception = True


def _do_nothing() -> None:
    pass
