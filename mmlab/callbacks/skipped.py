"""Samples that could not be read: counted by reason, shown, and above a limit the end of the run."""

from __future__ import annotations

from collections import Counter
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info

from mmlab import collectives
from mmlab.batch import Batch, Skip

LISTED = 100
"""Skipped samples that a message names, of each rank."""
SHORT_RUN = 10_000
"""The share is taken of at least so many samples, or of a whole pass where that is shorter: one broken
picture in the first batch does not stop a run."""


class Tally:
    """What one pass over a split could not read."""

    def __init__(self, stage: str, limit: float) -> None:
        self.stage = stage
        self.limit = limit
        self.seen = 0
        self.pass_samples: int | float = 0
        """Samples of the whole pass, over all ranks; may be infinite."""
        self.reasons: Counter[str] = Counter()
        self.first: list[Skip] = []

    def add(self, batch: Batch) -> None:
        """Count a batch of this rank."""
        self.seen += sum(key != "" for key in batch.keys)
        for skip in batch.skips:
            self.reasons[skip.reason] += 1
            if len(self.first) < LISTED:
                self.first.append(skip)

    def listing(self) -> str:
        """How many for which reason on all ranks, and the first of them; every rank must call it."""
        reasons: Counter[str] = Counter()
        first: list[Skip] = []
        for counted, listed in collectives.gather_objects((self.reasons, self.first)):
            reasons += counted
            first += listed
        lines = [f"  {count} x {reason}" for reason, count in reasons.most_common()]
        return "\n".join(lines + [f"    {skip.key}: {skip.reason}" for skip in first])

    def check(self) -> int:
        """Add the ranks up; every rank must call this at the same step.

        Returns:
            Samples skipped so far on all ranks.

        Raises:
            ValueError: If more than the limit were skipped; on every rank.
        """
        seen, skipped = collectives.host_total([self.seen, self.reasons.total()])
        if skipped > self.limit * max(seen, min(self.pass_samples, SHORT_RUN)):
            raise ValueError(
                f"{self.stage}: {skipped} of {seen} samples could not be read, more than "
                f"--skipped.limit {self.limit:g} allows:\n{self.listing()}\n"
                "`mmlab shards check` finds them all; mend the shards, or raise the limit."
            )
        return skipped


class SkippedSamples(Callback):
    """Counts the samples that could not be read, and stops the run when they are too many.

    Args:
        limit: Largest share of a pass over a split that may be skipped, in [0, 1].
        every_n_steps: How often the ranks add up their counts; the end of a pass does in any case.
    """

    def __init__(self, limit: float = 0.01, every_n_steps: int = 10) -> None:
        if not 0 <= limit <= 1:
            raise ValueError(f"skipped.limit is {limit}: it is a share of the samples, between 0 and 1")
        if every_n_steps < 1:
            raise ValueError(f"skipped.every_n_steps is {every_n_steps}: it must be at least 1")
        self.limit = limit
        self.every_n_steps = every_n_steps
        self._training = Tally("train", limit)
        self._evaluation = Tally("val", limit)

    def _add(self, tally: Tally, batch: Batch, step: int, steps: int | float) -> None:
        tally.add(batch)
        tally.pass_samples = len(batch) * collectives.world_size() * steps
        if (step + 1) % self.every_n_steps == 0:
            tally.check()

    def _finish(self, tally: Tally, pl_module: L.LightningModule) -> None:
        skipped = tally.check()
        if tally.stage != "predict":  # where Lightning lets nothing be logged
            pl_module.log(f"{tally.stage}/skipped", float(skipped), rank_zero_only=True)
        if skipped > 0:
            listing = tally.listing()
            rank_zero_info(f"{tally.stage}: {skipped} samples could not be read and were left out\n{listing}")

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A new count for each pass."""
        self._training = Tally("train", self.limit)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count a training batch."""
        self._add(self._training, batch, batch_idx, trainer.num_training_batches)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say what was skipped."""
        self._finish(self._training, pl_module)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A new count for each pass."""
        self._evaluation = Tally("val", self.limit)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count a validation batch."""
        self._add(self._evaluation, batch, batch_idx, trainer.num_val_batches[dataloader_idx])

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say what was skipped."""
        self._finish(self._evaluation, pl_module)

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A new count for each pass."""
        self._evaluation = Tally("test", self.limit)

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count a test batch."""
        self._add(self._evaluation, batch, batch_idx, trainer.num_test_batches[dataloader_idx])

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say what was skipped."""
        self._finish(self._evaluation, pl_module)

    def on_predict_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A new count for each pass."""
        self._evaluation = Tally("predict", self.limit)

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count a batch of which something is predicted."""
        self._add(self._evaluation, batch, batch_idx, trainer.num_predict_batches[dataloader_idx])

    def on_predict_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say what was skipped: of these samples there is no prediction."""
        self._finish(self._evaluation, pl_module)
