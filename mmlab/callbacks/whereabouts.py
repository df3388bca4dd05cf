"""Keeps the page on which this rank says where it is, and counts its signs of life."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loops.progress import _ProcessedTracker

from mmlab.batch import Batch
from mmlab.callbacks.batch_ends import BatchEnds
from mmlab.runs.rank_page import Phase, RankPage


class Whereabouts(BatchEnds):
    """Notes, in `ranks/` of the run directory, which batch this rank begins, and when it saves.

    A sign of life is: the beginning or the end of a batch in any stage, the beginning or the end of a pass
    over a split, and the beginning of a save. What may take long without another sign is marked: all before
    the first batch of a pass is done (workers start, a model is compiled), what a pass ends with (the
    metrics are computed), and saves.

    A note takes 8 microseconds for 32 samples of a batch, 77 for 1,024 (median of 300 calls of
    `RankPage.note` on one core, keys of 20 letters).
    """

    def __init__(self, directory: Path) -> None:
        """Settings.

        Args:
            directory: The run directory.
        """
        self.directory = directory
        self.signs = 0
        """Grows with every sign of life."""
        self.slow = True
        """Whether what goes on may take longer than a batch does."""
        self.doing = "starts"
        """What goes on, for people."""
        self.step = 0
        """As in :class:`mmlab.runs.rank_page.Page`."""
        self.trained = 0
        """As in :class:`mmlab.runs.rank_page.Page`."""
        self.phase: Phase = "start"
        self.keys: tuple[str, ...] = ()
        """Of the batch that began last."""
        self._page: RankPage | None = None
        self._done = 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Open the page."""
        if self._page is None:
            self._page = RankPage(self.directory, trainer.global_rank)
        self.step, self.trained, self.keys = 0, 0, ()
        self._sign("start", f"prepares `{stage}`", slow=True)
        self._page.note(self.step, "start")

    def _sign(self, phase: Phase, doing: str, *, slow: bool) -> None:
        self.phase, self.doing, self.slow = phase, doing, slow
        self.signs += 1

    def _begin(self, phase: Phase, step: int, batch: Batch) -> None:
        self.step, self.keys = step, batch.keys
        # The first of a pass may have to wait for workers and for a compiler.
        self._sign(phase, f"is in batch {step} of `{phase}`", slow=self._done == 0)
        assert self._page is not None
        self._page.note(step, phase, batch.keys, trained=self.trained)

    def batch_ended(self, trainer: L.Trainer, phase: Phase) -> None:
        """A batch ends."""
        self._done += 1
        self.trained += phase == "train"
        self._sign(self.phase, f"has done batch {self.step} of `{self.phase}`, has no next one", slow=False)

    def _begin_pass(self, phase: Phase) -> None:
        self._done = 0
        self._sign(phase, f"waits for the first batch of a pass of `{phase}`", slow=True)

    def _end_pass(self, phase: Phase) -> None:
        self._sign(phase, f"ends a pass of `{phase}`", slow=True)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """A save begins."""
        self._sign("save", f"saves a checkpoint after batch {self.step}", slow=True)
        assert self._page is not None
        self._page.note(self.step, "save", self.keys, trained=self.trained)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Training goes on where a checkpoint stands, perhaps with a validation."""
        progress = trainer.fit_loop.epoch_loop.batch_progress.total
        assert isinstance(progress, _ProcessedTracker)
        self.trained = progress.processed

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A pass begins."""
        self._begin_pass("train")

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """A batch begins."""
        self.trained = trainer.fit_loop.epoch_loop.batch_progress.total.ready - 1
        self._begin("train", self.trained, batch)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A pass ends."""
        self._end_pass("train")

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A pass begins."""
        self._begin_pass("val")

    def on_validation_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """A batch begins."""
        self._begin("val", batch_idx, batch)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A pass ends; metrics are computed after this."""
        self._end_pass("val")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Training goes on; its next batch may be slow."""
        self._done = 0
        self._sign("val", "has done a pass of `val`, has no next batch", slow=True)

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A pass begins."""
        self._begin_pass("test")

    def on_test_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """A batch begins."""
        self._begin("test", batch_idx, batch)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A pass ends; metrics are computed after this."""
        self._end_pass("test")

    def on_predict_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A pass begins."""
        self._begin_pass("predict")

    def on_predict_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """A batch begins."""
        self._begin("predict", batch_idx, batch)

    def on_predict_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A pass ends."""
        self._end_pass("predict")
