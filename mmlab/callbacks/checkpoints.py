"""Which checkpoints a run keeps: the best, and always the newest, which is written by time too."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from mmlab import collectives
from mmlab.parallel.checkpoint_files import CheckpointFiles

FAILED = "checkpoint/failed_saves"
"""Under this name loggers are told how many checkpoints could not be written."""
ALERT_SECONDS = 600
"""W&B sends no second mail within this time."""
_RANKING = (
    "best_k_models", "kth_best_model_path", "kth_value", "best_model_path", "best_model_score",
    "current_score",
)  # fmt: skip
"""Attributes of Lightning's callback that say which checkpoints are the best."""
_BEFORE, _RANKED, _DEFERRED = "before", "ranked_step", "deferred"
"""In the state of this callback: what these were before the newest of them was written, the last step that
was looked at, and whether the next validation decides of one."""


class Checkpoints(ModelCheckpoint):
    """Lightning's, with a `last.ckpt` that is what its name says, and that never believes in a failed save.

    Lightning 2.6 writes `last.ckpt` only where the score is among the best too: a run that was best early,
    and is killed late, would go on from early. Here it is written whenever the score is looked at, at the
    end, and when somebody asks for it: see :meth:`due` and :meth:`save_now`. Files are written behind
    training where the strategy can; the next time that a score is looked at, what could not be written is
    taken back, and the checkpoint that it was to replace is among the best again.

    Args:
        dirpath: Folder of the checkpoints; `checkpoints` of the run directory unless set.
        minutes: `last.ckpt` is due so long after the newest checkpoint. None: never by time.
        settings: Of Lightning's `ModelCheckpoint`.

    Raises:
        ValueError: `minutes` is not positive, or `save_last` is `link`.
    """

    # jsonargparse reads the names behind `settings` from Lightning: fifteen that are not ours to list.
    def __init__(
        self, dirpath: str | Path | None = None, *, minutes: float | None = 10.0, **settings: Any
    ) -> None:
        if minutes is not None and not minutes > 0:
            raise ValueError(f"checkpoint.minutes={minutes}: it must be above 0, or null for never")
        if settings.get("save_last") == "link":
            raise ValueError(
                "checkpoint.save_last=link: a link means nothing when the save of its target fails; set it "
                "to true"
            )
        super().__init__(dirpath, **settings)
        self.minutes = minutes
        self._saved_at = time.monotonic()
        self._newest_step = 0
        self._ranked_step = 0
        """The last whose score was looked at."""
        self._before: dict[str, Any] | None = None
        self._told = 0
        self.half_done = False
        """Whether an error has come where training is not between two steps, as whoever knows has said."""

    @property
    def state_key(self) -> str:
        """Lightning's own: by it its state is found again in checkpoints."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """From now on time counts. A run that goes on in its folder replaces what it repeats."""
        super().on_train_start(trainer, pl_module)
        self._saved_at = time.monotonic()
        if trainer.ckpt_path is not None and self.dirpath is not None:
            beside = Path(trainer.ckpt_path).absolute().parent == Path(self.dirpath).absolute()
            self._enable_version_counter = self._enable_version_counter and not beside

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep what is to be kept after a step."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._tell(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep what is to be kept at the end of an epoch."""
        super().on_train_epoch_end(trainer, pl_module)
        if self._should_save_on_train_epoch_end(trainer) and self._newest_step != trainer.global_step:
            self._keep_newest(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep what is to be kept after a validation."""
        super().on_validation_end(trainer, pl_module)
        if not self._should_save_on_train_epoch_end(trainer):
            self._keep_newest(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the weights that training ended with, and wait until all is written."""
        if self._newest_step != trainer.global_step:
            super().on_train_end(trainer, pl_module)
            self._keep_newest(trainer)
        self._settle(trainer)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Save once, where it is wanted and can be; in any case finish what is being written."""
        wanted = self._should_save_on_exception(trainer) and self._newest_step != trainer.global_step
        if wanted and not self.half_done:
            self.save_now(trainer)
            files = files_of(trainer)
            if files is None or files.unsaved() is None:
                kind = type(exception).__name__
                rank_zero_info(f"{kind}: saved step {trainer.global_step} as last.ckpt")
        elif (files := files_of(trainer)) is not None:
            files.wait()
        self._tell(trainer)

    @property
    def newest_step(self) -> int:
        """The step that was saved last, or is being saved."""
        return max(self._newest_step, self._last_global_step_saved)

    def due(self, now: float) -> bool:
        """Whether it is time for :meth:`save_now`, in this process's opinion; the ranks must agree on one.

        Args:
            now: As `time.monotonic()` gives it.
        """
        return self.minutes is not None and now - self._saved_at >= 60 * self.minutes

    def save_now(self, trainer: L.Trainer, *, again: bool = False) -> None:
        """Write `last.ckpt` between two steps; every rank must call this, at the same step.

        A validation at this step finds all as if this had not been called. Where the strategy writes behind
        training, this returns before the file is complete.

        Args:
            trainer: At the end of a step.
            again: Also where this step has been saved: a validation may have begun since.
        """
        saved = self._should_skip_saving_checkpoint(trainer) or trainer.global_step == self._newest_step
        if saved and not again:
            return
        own = self.save_last, self._last_global_step_saved, self._last_checkpoint_saved
        self.save_last = True
        try:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
        finally:
            self.save_last, self._last_global_step_saved, self._last_checkpoint_saved = own

    def _keep_newest(self, trainer: L.Trainer) -> None:
        if not self._should_skip_saving_checkpoint(trainer):  # it has not just been written
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def _save_last_checkpoint(self, trainer: L.Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        super()._save_last_checkpoint(trainer, monitor_candidates)
        if self.save_last:
            self._newest_step = trainer.global_step

    def _save_topk_checkpoint(self, trainer: L.Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        self._settle(trainer)
        self._before = self._ranking()
        self._ranked_step, self._defer_save_until_validation = trainer.global_step, False
        super()._save_topk_checkpoint(trainer, monitor_candidates)

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        with _behind(files_of(trainer)):
            super()._save_checkpoint(trainer, filepath)
        self._saved_at = time.monotonic()

    def _ranking(self) -> dict[str, Any]:
        found = {name: getattr(self, name) for name in _RANKING}
        return found | {"best_k_models": dict(self.best_k_models)}

    def _settle(self, trainer: L.Trainer) -> None:
        """Wait for all saves, and take back what failed; every rank must call this."""
        files = files_of(trainer)
        if files is None:
            return
        files.wait()
        self._tell(trainer)
        # Ranks must rank alike, and with copies of the model only the first one writes.
        failed = set(collectives.gather_objects([str(path) for path in files.take_failures()])[0])
        if failed:
            self._last_global_step_saved = 0
            self._newest_step = 0
        if self._before is not None and failed & {self.best_model_path, *self.best_k_models}:
            for name, value in self._before.items():
                setattr(self, name, value)
            for path in {self.best_model_path, *self.best_k_models} - {""}:
                files.keep(path)
        self._before = None

    def _tell(self, trainer: L.Trainer) -> None:
        """Let loggers know of saves that failed since the last time."""
        files = files_of(trainer)
        if files is None or files.failed_saves == self._told or not trainer.is_global_zero:
            return
        self._told = files.failed_saves
        for logger in trainer.loggers:
            logger.log_metrics({FAILED: float(self._told)}, step=trainer.global_step)
            if isinstance(logger, WandbLogger):
                logger.experiment.alert(
                    "checkpoint not saved", files.last_failure, level="ERROR", wait_duration=ALERT_SECONDS
                )

    def state_dict(self) -> dict[str, Any]:
        """Lightning's, and what to fall back on if the newest of the best is not written in the end."""
        own = {_RANKED: self._ranked_step, _DEFERRED: self._defer_save_until_validation}
        return super().state_dict() | own | ({} if self._before is None else {_BEFORE: self._before})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state from a checkpoint, without what is not there; every rank must call this."""
        state_dict = dict(state_dict)
        before = state_dict.pop(_BEFORE, None)
        self._ranked_step = self._last_global_step_saved = state_dict.pop(_RANKED, 0)
        self._defer_save_until_validation = state_dict.pop(_DEFERRED, False)
        super().load_state_dict(state_dict)
        self._drop_missing()
        lost = self.best_model_path != state_dict["best_model_path"]
        if before is not None and lost and self.dirpath == state_dict["dirpath"]:
            for name, value in before.items():
                setattr(self, name, value)
            self._drop_missing()

    def _drop_missing(self) -> None:
        """Forget checkpoints that nobody wrote, or that somebody removed."""
        known = sorted({self.best_model_path, *self.best_k_models} - {""})
        there = collectives.gather_objects([path for path in known if Path(path).exists()])[0]
        if there == known:
            return
        kept = {path: score for path, score in self.best_k_models.items() if path in there}
        self.best_k_models = kept
        order = sorted(kept, key=lambda path: float(kept[path]), reverse=self.mode == "max")
        self.best_model_path = order[0] if order else ""
        self.best_model_score = kept[order[0]] if order else None
        if order:
            self.kth_best_model_path, self.kth_value = order[-1], kept[order[-1]]


def files_of(trainer: L.Trainer) -> CheckpointFiles | None:
    """What writes the checkpoints of a run, if it is mmlab's."""
    files = trainer.strategy.checkpoint_io
    return files if isinstance(files, CheckpointFiles) else None


@contextmanager
def _behind(files: CheckpointFiles | None) -> Iterator[None]:
    if files is None:
        yield
        return
    with files.behind():
        yield
