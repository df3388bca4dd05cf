"""What follows when a job's training has ended: nothing, or the job once more."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from mmlab.launch.beginning import has_begun
from mmlab.launch.own_job import OwnJob
from mmlab.runs.attempts import Failure, clear_failure, keep_failure, noted_failure, past_failures
from mmlab.runs.rank_page import read_pages
from mmlab.runs.status import read_status, write_status

BAD_INPUT, INTERRUPTED = 2, 130
"""Exit statuses after which another attempt would be no better, or is not wanted."""
PATIENCE = 600.0
"""Seconds in which a controller that is being restarted may come back, while the job holds its nodes."""


def ended(run: Path, status: int, *, requeues: int) -> int:
    """Decide what follows, and say it on stderr; the batch script calls this last.

    A job that was told to stop has requeued itself, or Slurm does. One that failed begins again, unless it
    has failed in the same way at the same step before, or too often.

    Args:
        run: The run directory.
        status: Exit status of `srun`, which is the greatest of all ranks, or 128 and the signal.
        requeues: How many failures may be followed by another attempt.

    Returns:
        The exit status of the job.
    """
    before, job = read_status(run), OwnJob.find()
    own = job is None or has_begun(run, job)  # else what is noted there is of an attempt before
    if status == 0 or (own and before.state == "finished"):
        clear_failure(run)
        return 0  # what ended it afterwards took nothing away
    if own and before.state == "preempted":
        clear_failure(run)
        if job is not None:
            # It has done so, unless Slurm did not answer.
            _say(job.requeue("after it was told to stop", patience=PATIENCE))
        return status
    failure = _failure(run, status, own=own)
    clear_failure(run)
    past = past_failures(run)
    failures = len(past) + 1
    if not _written(lambda: keep_failure(run, failure)) and job is not None:
        # Of failures that nobody can list, Slurm's count sees to it that they come to an end.
        failures = max(failures, job.restarts + 1)
    verdict = _verdict(failure, past, failures=failures, status=status, requeues=requeues)
    _written(lambda: write_status(run, before._replace(state="failed", reason=verdict or failure.what)))
    _say(f"{run}: {failure.what}, at step {failure.step} (status {status})")
    if verdict is not None or job is None:
        _say(verdict or "no Slurm job: not begun again")
        return status
    _say(job.requeue(f"for attempt {failures + 1} of {requeues + 1}", patience=PATIENCE))
    return status


def _failure(run: Path, status: int, *, own: bool) -> Failure:
    """What happened: as a rank has noted it, else from where the ranks were when they were killed.

    Args:
        run: The run directory.
        status: Exit status of `srun`.
        own: Whether this attempt came as far as to note where its ranks are.
    """
    noted = noted_failure(run)
    if noted is not None and not (noted.follows and status > 128):
        return noted
    pages = read_pages(run) if own else []
    # Which signal stands in the status differs: srun ends the other ranks when one has been killed.
    what = "a rank was killed" if status > 128 else f"ended with status {status}"
    if not pages:
        hopeless = status in (BAD_INPUT, INTERRUPTED)
        return Failure(f"{what}, before it began", step=0, hopeless=hopeless, time=time.time())
    # Ranks wait for each other, so the one that died is not ahead of any.
    last = min(pages, key=lambda page: (page.trained, page.step))
    return Failure(what + last.within, last.trained, last.listing(), last.rank, time=time.time())


def _verdict(
    failure: Failure, past: list[Failure], *, failures: int, status: int, requeues: int
) -> str | None:
    """Why the job is not begun again, after so many failures; None: it is."""
    if failure.hopeless or status == INTERRUPTED:
        return "not begun again: it would be no better"
    samples = f"; its samples: {failure.samples}" if failure.samples else ""
    if past and failure.like(past[-1]):
        return f"not begun again: twice the same at step {failure.step}: {failure.what}{samples}"
    if failures > requeues:
        return f"not begun again: {failures} failures, and --requeues is {requeues}{samples}"
    return None


def _written(write: Callable[[], None]) -> bool:
    """Write, and say so where the disk has no room."""
    try:
        write()
    except OSError as error:
        _say(f"not written: {error}")
        return False
    return True


def _say(what: str) -> None:
    print(f"mmlab: {what}", file=sys.stderr, flush=True)
