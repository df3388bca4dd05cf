"""Keeps `status.json`: how the run stands, for people and for `mmlab jobs`."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch.distributed as dist
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loops.progress import _ProcessedTracker
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from mmlab.callbacks.batch_ends import BatchEnds
from mmlab.callbacks.checkpoints import Checkpoints, files_of
from mmlab.callbacks.non_finite import RollBack
from mmlab.callbacks.run_logger import RunLogger
from mmlab.callbacks.spared import spared
from mmlab.callbacks.watchdog import Watchdog
from mmlab.launch.own_job import OwnJob
from mmlab.parallel.checkpoint_files import Saved
from mmlab.runs.attempts import Failure, clear_failure, in_words, note_failure, past_failures
from mmlab.runs.rank_page import Phase, read_pages
from mmlab.runs.status import FILE, State, Status, read_status, write_status

IDLE_STOPS = 3
"""After so many walltimes in a row that brought nothing, another one would not."""
EVERY = 5.0
"""Seconds from one note to the next."""
HOPELESS = (ValueError, FileNotFoundError, PermissionError, MisconfigurationException)
"""What the command line reports as bad input: another attempt would meet it again."""
LOST = ("gloo/transport", "NCCL")
"""What errors of a connection to another rank say."""


class Standing(BatchEnds):
    """Writes `status.json` every few seconds, and how the run ended; hands on rows that a checkpoint holds.

    Args:
        directory: The run directory.
        job: The Slurm job, if the run is in one.
    """

    def __init__(self, directory: Path, job: OwnJob | None = None) -> None:
        self.directory = directory
        self.job = job
        self.status = Status(
            "running",
            job=None if job is None else job.id,
            restarts=0 if job is None else job.restarts,
            process=f"{socket.gethostname()}:{os.getpid()}",
        )
        self.rank = 0
        self._said = self._began = time.monotonic()
        self._first = 0
        self._steps: int | None = None
        self._newest: Saved | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """The run is under way."""
        self.rank = trainer.global_rank
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Watchdog):
                callback.on_hang = self.hung
        if trainer.is_global_zero:
            clear_failure(self.directory)
            self._forget(trainer.world_size)
            self.directory.mkdir(parents=True, exist_ok=True)
            before = read_status(self.directory)
            self.status = self.status._replace(
                save_seconds=before.save_seconds,
                stopped_step=before.stopped_step,
                idle_stops=before.idle_stops,
            )
            self._write(trainer, "running")

    def _forget(self, ranks: int) -> None:
        """Remove what an attempt before has left, and what all ranks have read by now."""
        for path in (self.directory / "ranks").glob("*"):
            number = path.stem.removeprefix("rank")
            if path.name.startswith("start-") or (number.isdecimal() and int(number) >= ranks):
                path.unlink(missing_ok=True)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._began, self._first = time.monotonic(), trainer.global_step
        total = trainer.estimated_stepping_batches  # every rank must ask
        self._steps = None if total == float("inf") else int(total)
        if trainer.ckpt_path is not None:
            saved = Path(trainer.ckpt_path).stat().st_mtime
            self.status = self.status._replace(saved_step=trainer.global_step, saved_at=saved)

    def batch_ended(self, trainer: L.Trainer, phase: Phase) -> None:
        """Write, if it is time."""
        if trainer.is_global_zero and time.monotonic() - self._said >= EVERY:
            # Only here: elsewhere asking for it may compute what ranks compute together, and others are not
            # there, least of all after an error.
            rate = trainer.callback_metrics.get("train/samples_per_second")
            if rate is not None:
                self.status = self.status._replace(samples_per_second=float(rate))
            self._write(trainer, "running")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write where training ended."""
        if trainer.is_global_zero:
            self._write(trainer, "running")

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Write why the run ends."""
        if isinstance(exception, RollBack):
            return  # it goes on
        stopped = isinstance(exception, SIGTERMException)
        if not stopped:
            self._note_failure(trainer, exception)
        if not trainer.is_global_zero:
            return
        if stopped:
            self.status = self._stopped(self.status._replace(**self._saved(trainer)))
        self._write(
            trainer,
            "preempted" if stopped else "failed",
            reason="told to stop" if stopped else in_words(exception),
        )
        for logger in _run_loggers(trainer) if stopped else []:
            logger.send(self.status.saved_step or 0)
            logger.preempted()

    def _stopped(self, status: Status) -> Status:
        """Count walltimes that have brought nothing that the next one can go on from."""
        saved, before = status.saved_step or 0, status.stopped_step
        idle = before is not None and saved <= before and self.job is not None and self.job.out_of_time()
        return status._replace(
            stopped_step=max(saved, before or 0), idle_stops=(status.idle_stops or 0) + 1 if idle else 0
        )

    def give_up(self) -> str | None:
        """Why the job is not to be queued again after a stop, which is noted; None: it is. On rank 0."""
        if (self.status.idle_stops or 0) < IDLE_STOPS:
            return None
        step = self.status.stopped_step or 0
        why = (
            f"not queued again: {IDLE_STOPS} walltimes in a row ended without a checkpoint newer than that "
            f"of step {step}: give it more --time, room on the disk, or checkpoint.minutes"
        )
        with spared(self.directory / "failures"):
            note_failure(self.directory, Failure(why, step, hopeless=True))
        self.finish("failed", why)
        return why

    def _note_failure(self, trainer: L.Trainer, exception: BaseException) -> None:
        progress = trainer.fit_loop.epoch_loop.batch_progress.total
        assert isinstance(progress, _ProcessedTracker)
        samples = [page.listing() for page in read_pages(self.directory) if page.rank == trainer.global_rank]
        failure = Failure(
            in_words(exception),
            progress.processed,
            samples[0] if samples else "",
            trainer.global_rank,
            follows=isinstance(exception, dist.DistError) or any(word in str(exception) for word in LOST),
            hopeless=isinstance(exception, (*HOPELESS, KeyboardInterrupt)),
        )
        with spared(self.directory / "failures"):
            note_failure(self.directory, failure)
        past = past_failures(self.directory)
        if failure.hopeless or (past and failure.like(past[-1])):
            for logger in _run_loggers(trainer):
                logger.send()  # the run does not go on: what led here is worth seeing

    def hung(self, reason: str) -> None:
        """Say that the watchdog ends the run; called from its thread, on every rank."""
        pages = [page for page in read_pages(self.directory) if page.rank == self.rank]
        failure = Failure("hung", 0, rank=self.rank)
        for page in pages:
            failure = Failure(f"hung{page.within}", page.trained, page.listing(), self.rank)
        with spared(self.directory / "failures"):
            note_failure(self.directory, failure)
        if self.rank == 0:
            self.finish("hung", reason)

    def finish(self, state: State, reason: str | None = None) -> None:
        """Say that the run is over; on rank 0."""
        self.status = self.status._replace(state=state, reason=reason, eta_seconds=None)
        with spared(self.directory / FILE):
            write_status(self.directory, self.status)

    def _write(self, trainer: L.Trainer, state: State, reason: str | None = None) -> None:
        self._said = time.monotonic()
        step = trainer.global_step
        changes: dict[str, Any] = {"state": state, "reason": reason}
        if trainer.state.fn == TrainerFn.FITTING:
            steps = self._steps
            done = step - self._first
            took = self._said - self._began
            changes |= {
                "step": step,
                "steps": steps,
                "eta_seconds": took / done * (steps - step) if steps is not None and done > 0 else None,
            }
        self.status = self.status._replace(**(changes | self._saved(trainer)))
        with spared(self.directory / FILE):
            write_status(self.directory, self.status)
        if self.status.saved_step is not None:
            for logger in _run_loggers(trainer):
                logger.send(self.status.saved_step)

    def _saved(self, trainer: L.Trainer) -> dict[str, Any]:
        """What is known of the newest complete checkpoint, where it is another one than before."""
        files = files_of(trainer)
        if files is None or files.last_save is None or files.last_save is self._newest or files.busy:
            return {}
        self._newest = files.last_save
        steps = [c.newest_step for c in trainer.checkpoint_callbacks if isinstance(c, Checkpoints)]
        return {
            "saved_step": max(steps, default=None), "saved_at": time.time(),
            "save_seconds": self._newest.seconds,
        }  # fmt: skip


def _run_loggers(trainer: L.Trainer) -> list[RunLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, RunLogger)]
