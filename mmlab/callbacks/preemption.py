"""Ranks stop together when one of them is told to, at the end of a step, with all saved."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NamedTuple

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.loops.progress import _ProcessedTracker
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from mmlab import collectives
from mmlab.callbacks.batch_ends import BatchEnds
from mmlab.callbacks.checkpoints import Checkpoints, files_of
from mmlab.callbacks.non_finite import NonFiniteError, RollBack
from mmlab.launch.notice import Notice, Told
from mmlab.launch.own_job import OwnJob, kill_wait
from mmlab.parallel.checkpoint_files import CheckpointFiles
from mmlab.runs.checkpoint import Weights, write_weights
from mmlab.runs.rank_page import Phase
from mmlab.runs.status import read_status
from mmlab.tasks.base import BaseTask

METRICS = "metrics"
"""Entry of a checkpoint: the newest numbers that were logged, by name."""
SECONDS = 1.0
"""A rank that is told to stop need not wait much longer for the others to hear of it."""


class Preemption(BatchEnds):
    """Stops all ranks at the same step after a signal to any of them, and saves at that step.

    Lightning broadcasts a tensor of the device before every step and reads it, which waits until the GPU has
    done all that was queued (Lightning issue 21487), hears rank 0 only, and starts another broadcast inside
    the signal handler, where it may meet any other collective. Here the handler takes a note, and ranks
    compare notes over the CPU group, which a GPU does not wait for. In the same breath they agree whether it
    is time for a checkpoint.

    What is saved is a run between two steps: one that is stopped before or in a validation validates anew
    when it goes on, so it chooses the same best checkpoint as if nothing had happened.

    Args:
        notice: Where signals are noted.
        every_n_steps: How often ranks ask at most; slow steps are asked about more often, see
            :data:`SECONDS`.
    """

    def __init__(self, notice: Notice | None = None, *, every_n_steps: int = 32) -> None:
        self.notice = Notice() if notice is None else notice
        self.every_n_steps = every_n_steps
        self.stopped: Told | None = None
        """The signal at which the run stopped; on every rank, whoever got it."""
        self._metrics: dict[str, Tensor] = {}
        self._kill_wait = 30.0
        self._max_steps: int | None = None
        """The trainer's, while it has another."""
        self._reset()

    def _reset(self) -> None:
        self._count_anew()
        self._stop = self._save = self._in_validation = self._epoch_over = False
        self._backward_at: int | None = None
        """The step that the last gradients are for."""

    def _count_anew(self) -> None:
        """Ask after the next batch: how long those of another kind took says nothing of it."""
        self._steps, self._interval, self._mark = 0, 1, time.perf_counter()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Take the place of Lightning's handlers and broadcasts, in this trainer only."""
        self._reset()
        # Handlers are registered after this, and looked up here; one that was there before is called, too.
        trainer._signal_connector._sigterm_notifier_fn = self._note  # type: ignore[assignment, method-assign]
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _do_nothing  # type: ignore[method-assign]
        if stage == "fit" and trainer.is_global_zero and OwnJob.find() is not None:
            self._kill_wait = kill_wait()  # asked now: when the time has come, Slurm may be busy

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.notice.note(signum, frame)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Number what is logged by the steps that are done."""
        # Where `max_steps` is set, a run that goes on from the end of an epoch would count one more.
        if pl_module.automatic_optimization:
            trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """From here to the end of the step there are gradients that no checkpoint holds."""
        self._backward_at = trainer.global_step

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave out a validation that would not come to its end."""
        self._count_anew()
        if trainer.state.fn != TrainerFn.FITTING:
            return
        self._in_validation = True
        if self._max_steps is not None:
            trainer.fit_loop.epoch_loop.max_steps, self._max_steps = self._max_steps, None
        progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress.total
        if progress.ready != progress.completed:  # as a checkpoint had it, see `on_save_checkpoint`
            progress.reset()
        if trainer.received_sigterm:
            raise SIGTERMException

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """What is saved from here on need not be validated again."""
        self._in_validation = False

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Steps of training may be slower by far than batches of validation were."""
        self._count_anew()

    def batch_ended(self, trainer: L.Trainer, phase: Phase) -> None:
        """Ask if it is time; stop or save if that can be done after this batch."""
        self._count(trainer)
        if phase == "train":
            self._after_step(trainer)
        elif self._stop and phase == "predict":
            raise SIGTERMException  # Lightning's loop does not look whether it is to stop
        elif self._stop:
            trainer._signal_connector.received_sigterm = True

    def _after_step(self, trainer: L.Trainer) -> None:
        if trainer.fit_loop.epoch_loop._should_accumulate():
            return  # the gradients of the batches before would be lost
        if self._stop:
            # Lightning's loops look here after the hooks of the step, and stop.
            trainer._signal_connector.received_sigterm = True
        elif self._save and not _ends_epoch(trainer) and not _validates_next(trainer):
            self._save = False
            for callback in _keepers(trainer):
                callback.save_now(trainer)

    def _count(self, trainer: L.Trainer) -> None:
        self._steps += 1
        if self._steps >= self._interval:
            self._ask(trainer)

    def _ask(self, trainer: L.Trainer) -> None:
        """Learn whether any rank was told to stop, and agree when to ask again; every rank must call this."""
        now = time.perf_counter()
        told = self.notice.told
        due = trainer.is_global_zero and any(c.due(time.monotonic()) for c in _keepers(trainer))
        notes = _Notes(
            0.0 if told is None else float(told.signal),
            0.0 if told is None else -told.at,
            float(due),
            (now - self._mark) / self._steps,
        )
        notes = notes.greatest()
        self._steps, self._mark = 0, now
        often = 1 if collectives.world_size() == 1 else self.every_n_steps  # it costs one process nothing
        self._interval = max(1, min(often, int(SECONDS / max(notes.seconds, 1e-9))))
        self._save = self._save or notes.due > 0
        if notes.signal > 0:
            # A signal may be heard at the end of a stage, too late to stop it: then the next one stops.
            self._stop = True
            self.stopped = self.stopped or Told(signal.Signals(int(notes.signal)), -notes.earliest)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember that nothing is left to do in this epoch."""
        self._epoch_over = True

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Another epoch."""
        self._epoch_over = False

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Say where training stands in a way that Lightning understands when it goes on."""
        checkpoint[METRICS] = {name: float(value) for name, value in trainer.callback_metrics.items()}
        loop = checkpoint["loops"]["fit_loop"]
        batches = trainer.fit_loop.epoch_loop.batch_progress.current
        assert isinstance(batches, _ProcessedTracker)
        stepping = batches.processed == batches.completed + 1  # in the hooks at the end of a batch
        for count in ("total", "current"):  # an error may come in the middle of a batch: it comes again
            progress = loop["epoch_loop.batch_progress"][count]
            progress["ready"] = progress["started"] = progress["processed"]
        if self._in_validation or (stepping and _validates_next(trainer)):
            # Lightning goes back to a validation that has one batch under way and none done.
            for count in ("total", "current"):
                progress = loop["epoch_loop.batch_progress"][count]
                progress["completed"] = progress["processed"]
                progress = loop["epoch_loop.val_loop.batch_progress"][count]
                progress |= {"ready": 1, "started": 1, "processed": 0, "completed": 0}
        elif self._epoch_over and not _ends_epoch(trainer):
            # `max_steps` has ended it; a run with more goes on within it.
            for count in ("total", "current"):
                progress = loop["epoch_progress"][count]
                progress["completed"] = progress["processed"] = progress["started"] - 1
        elif self._epoch_over:
            # It knows the beginning of an epoch. At the end of one it would end it again, and where
            # `max_steps` is set and nothing validates, train on one batch more.
            for count in ("total", "current"):
                progress = loop["epoch_progress"][count]
                progress["completed"] = progress["processed"]
                progress["ready"] = progress["processed"] + 1
            batches_done = loop["epoch_loop.batch_progress"]
            batches_done["is_last_batch"] = False
            batches_done["current"] |= dict.fromkeys(batches_done["current"], 0)
            if _validates_first(trainer):
                loop["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1
        elif self._stop and _validates_next(trainer):
            # It comes again to the end of the step that has validated, and counts it again.
            loop["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Remember what had been measured, and see to a last validation that is due."""
        self._metrics = {name: torch.tensor(value) for name, value in checkpoint.get(METRICS, {}).items()}
        if trainer.state.fn != TrainerFn.FITTING:
            return
        loop, step = trainer.fit_loop.epoch_loop, checkpoint["global_step"]
        if trainer.limit_val_batches != 0 and 0 <= loop.max_steps <= step and not validated(checkpoint):
            # Lightning would take the run for done.
            self._max_steps, loop.max_steps = loop.max_steps, step + 1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give back what had been measured: checkpoints and early stopping go by the last score."""
        # Lightning forgets the epoch that it has begun where it goes on at the beginning of one. Checkpoints
        # of that epoch would then count it as one more, and a run from them would end an epoch early.
        epochs = trainer.fit_loop.epoch_progress
        epochs.current.ready = epochs.total.ready
        trainer._logger_connector._callback_metrics.update(self._metrics)
        self._metrics = {}

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Save, where time allows: all ranks have come here. After an error say whether others may."""
        # A validation that has not begun yet, or is over, would be left out, or its score.
        at_an_end = not self._in_validation and (trainer.validating or _ends_epoch(trainer))
        half_done = self._backward_at == trainer.global_step or at_an_end
        for callback in _keepers(trainer):
            callback.half_done = half_done
        if not isinstance(exception, SIGTERMException) or trainer.state.fn != TrainerFn.FITTING:
            return
        files = files_of(trainer)
        plan = collectives.gather_objects(self._plan(trainer, files) if trainer.is_global_zero else None)[0]
        for callback in _keepers(trainer):
            callback.save_on_exception = False
            if plan == "all":
                try:
                    callback.save_now(trainer, again=True)
                except (NonFiniteError, RollBack) as bad:
                    rank_zero_info(f"no checkpoint is saved here: {bad}; the run goes on from the last one")
            elif plan == "weights" and callback.dirpath is not None:
                _save_weights(trainer, Path(callback.dirpath))
            else:
                rank_zero_info("no time is left for a checkpoint: the run goes on from the last one")
        if files is not None:
            files.wait()

    def _plan(
        self, trainer: L.Trainer, files: CheckpointFiles | None
    ) -> Literal["all", "weights", "nothing"]:
        """What there is time to save, by what the last save took; on rank 0."""
        job, last = OwnJob.find(), None if files is None else files.last_save
        # One that has not saved since it began again goes by what the attempt before has noted.
        before = read_status(Path(trainer.default_root_dir)).save_seconds if last is None else last.seconds
        if job is None or before is None or self.stopped is None:
            return "all"
        left = job.seconds_left(self.stopped, kill_wait=self._kill_wait)
        if left >= before:
            return "all"
        if last is None:
            return "weights"
        return "weights" if left >= last.seconds * last.weights / last.size else "nothing"


def validated(checkpoint: Mapping[str, Any]) -> bool:
    """Whether a run that goes on from a checkpoint need not begin with a validation."""
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]["total"]
    return bool(progress["ready"] == progress["completed"])


class _Notes(NamedTuple):
    """What a rank knows; of all ranks, the greatest of each."""

    signal: float
    earliest: float
    """Minus the time of the signal."""
    due: float
    seconds: float

    def greatest(self) -> _Notes:
        """Over all ranks, past the device."""
        group = collectives.cpu_group()
        if group is None:
            return self
        # Who was told nothing has no time.
        values = [value if value != 0 else -float("inf") for value in self]
        notes = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(notes, dist.ReduceOp.MAX, group=group)
        return _Notes(*(value if value != -float("inf") else 0.0 for value in notes.tolist()))


def _save_weights(trainer: L.Trainer, folder: Path) -> None:
    """Keep what is trained without the state of the optimizer, as another run may begin with it."""
    task = trainer.lightning_module
    if isinstance(trainer.strategy, ModelParallelStrategy) or not isinstance(task, BaseTask):
        rank_zero_info("no time is left for a checkpoint: the run goes on from the last one")
    elif trainer.is_global_zero:
        kept: dict[str, Any] = {"state_dict": task.state_dict()}
        # Not what a leaf adds, which the file does not hold: ranks that are not here may have to agree on it.
        BaseTask.on_save_checkpoint(task, kept)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"stopped-step{trainer.global_step}.safetensors"
        write_weights(path, Weights(kept["state_dict"], **kept["adaptation"]))
        for older in folder.glob("stopped-step*.safetensors"):
            if older != path:
                older.unlink()
        rank_zero_info(
            f"no time is left for a whole checkpoint: {path} has the weights; the run goes on from the last"
        )


def _keepers(trainer: L.Trainer) -> list[Checkpoints]:
    return [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, Checkpoints)]


def _validates_next(trainer: L.Trainer) -> bool:
    """Whether a validation follows this batch."""
    fetcher = trainer.fit_loop._data_fetcher
    return fetcher is not None and trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


def _validates_first(trainer: L.Trainer) -> bool:
    """Whether Lightning, when it goes on at the beginning of the next epoch, takes a validation for due.

    It holds for validated what has been trained on, and leaves it out, but counts a step.
    """
    loop, every = trainer.fit_loop.epoch_loop, trainer.val_check_batch
    if every is None or every == float("inf") or not loop._should_check_val_epoch():
        return False
    batches = loop.batch_progress.total.ready if trainer.check_val_every_n_epoch is None else 0
    return batches % every == 0


def _ends_epoch(trainer: L.Trainer) -> bool:
    return trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def _do_nothing() -> None:
    pass
