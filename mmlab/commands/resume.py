"""Where a run goes on: in which directory, and from which checkpoint."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from mmlab.callbacks.history import History
from mmlab.callbacks.preemption import validated
from mmlab.callbacks.run_logger import RunLogger
from mmlab.launch.own_job import OwnJob
from mmlab.parallel.stored import open_checkpoint
from mmlab.runs.checkpoint import FOLDER, newest_good
from mmlab.runs.directory import SHARED_ID, attempt_id, launched_id, run_directory, write_json
from mmlab.runs.status import Status, read_status

Resume = Literal["auto", "never"]
SHARED_START = "MMLAB_RESUME_FROM"
"""Processes that this one starts (the other ranks) read here where training begins."""
ALIVE = 60.0
"""Seconds after which a run that says nothing more is taken to be dead."""
PATIENCE = 1800.0
"""Seconds that a rank waits for the choice of the first one, which may have to read large checkpoints."""


def default_resume() -> Resume:
    """`auto` where a scheduler starts the same run again, under the same id."""
    known = SHARED_ID in os.environ or launched_id() is not None
    return "auto" if known and OwnJob.find() is not None else "never"


def find_run(runs: Path, name: str, resume: Resume) -> Path:
    """The directory of this run: the one that a scheduler's id names, or that goes on, or a new one.

    Raises:
        ValueError: The run that would go on is under way elsewhere.
    """
    if resume == "auto" and SHARED_ID not in os.environ:
        launched = launched_id()
        fresh = launched is None or (OwnJob.find() is None and not (runs / name / launched).exists())
        unfinished = newest_unfinished(runs / name) if fresh else None
        if unfinished is not None:
            os.environ[SHARED_ID] = unfinished.name
    directory = run_directory(runs, name)
    status = read_status(directory)
    if resume == "auto" and _runs_elsewhere(status):
        raise ValueError(
            f"{directory} is under way, in process {status.process}"
            f"{'' if status.job is None else f' of job {status.job}'}: wait for it, or set --resume never"
        )
    return directory


def newest_unfinished(folder: Path) -> Path | None:
    """The run of a name that was begun last, if it has checkpoints and has not come to its end."""
    for run in sorted(folder.glob("*"), key=lambda run: run.stat().st_mtime, reverse=True):
        status = read_status(run)
        if status.state is not None and (run / FOLDER).is_dir():  # others have tested or predicted only
            return run if status.state != "finished" else None
    return None


def _runs_elsewhere(status: Status) -> bool:
    own = OwnJob.find()
    if status.state != "running" or (own is not None and status.job == own.id):
        return False
    host, _, number = (status.process or "").rpartition(":")
    if host == socket.gethostname() and Path("/proc/self").exists():
        # In a container that begins again, the number of the dead process may be ours.
        return number != str(os.getpid()) and Path("/proc", number).exists()
    return status.updated is not None and time.time() - status.updated < ALIVE


def find_start(directory: Path) -> Path | None:
    """The checkpoint that training goes on from, the same on all ranks; None: it begins.

    The first rank looks for the newest good one, see :func:`~mmlab.runs.checkpoint.newest_good`. Ranks that
    it starts find its choice in their environment, others in a file of the run directory: before training
    they cannot talk to each other.

    Raises:
        ValueError: There are checkpoints, but none of them is whole; or the first rank says nothing.
    """
    attempt = attempt_id()
    if attempt is None:
        if SHARED_START not in os.environ:
            os.environ[SHARED_START] = _choose(directory)
        chosen = os.environ[SHARED_START]
    else:
        note = directory / "ranks" / f"start-{attempt}.json"
        if getattr(rank_zero_only, "rank", 0) == 0:
            note.parent.mkdir(parents=True, exist_ok=True)
            for old in note.parent.glob("start-*.json"):
                if old != note:
                    old.unlink()
            write_json(note, {"from": _choose(directory)})
        chosen = _wait_for(note)
    return Path(chosen) if chosen else None


def _choose(directory: Path) -> str:
    folder = directory / FOLDER
    good = newest_good(folder)
    if good is None and any(folder.glob("[!.]*.ckpt*")):
        raise ValueError(
            f"no checkpoint in {folder} is whole: remove the folder, or set --resume never, to begin anew"
        )
    return "" if good is None else str(good)


def _wait_for(note: Path) -> str:
    deadline = time.monotonic() + PATIENCE
    while not note.exists():
        if time.monotonic() > deadline:
            raise ValueError(
                f"rank 0 has not said within {PATIENCE:.0f} seconds where the run goes on ({note})"
            )
        time.sleep(0.1)
    chosen: str = json.loads(note.read_text(encoding="utf-8"))["from"]
    return chosen


class Start(NamedTuple):
    """Where training goes on."""

    step: int
    """Steps that are done."""
    validated: bool = True
    """False: with a validation of these steps."""


def read_start(checkpoint: Path) -> Start:
    """Where training goes on from a checkpoint."""
    rest = open_checkpoint(checkpoint).rest
    return Start(int(rest["global_step"]), validated(rest))


def continue_logs(loggers: Sequence[Logger], start: Start) -> None:
    """Let the loggers go on where training goes on, on the first rank.

    What was logged after that is logged again.

    Args:
        loggers: Of the trainer.
        start: Where a checkpoint stands.
    """
    for history in loggers:
        if isinstance(history, History):
            rows = sorted(history.go_on(*start), key=lambda row: row.step)
            for logger in loggers:
                if isinstance(logger, RunLogger):
                    logger.go_on(rows)
