"""Handing a batch script to Slurm, also where the answer is lost."""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path

from mmlab.launch import slurm
from mmlab.launch.listing import MARK

LOOKS, PAUSE = 4, 3.0
"""So often the queue is looked at for a job, with seconds between: Slurm may still be at work on it."""


class UnknownError(ValueError):
    """Whether the job waits cannot be told: nothing that it needs may be removed."""


def queue_script(
    script: Path, *options: str, run: Path, directory: Path | None = None, before: Collection[str] = ()
) -> str:
    """Hand a script to Slurm.

    Args:
        script: The batch script.
        options: Of sbatch.
        run: The run directory, which the job has in its comment.
        directory: Where sbatch is called.
        before: Ids of jobs that had this run directory before.

    Returns:
        The id of the job; where sbatch has had no answer, that of the queue.

    Raises:
        UnknownError: sbatch has had no answer, and neither has the look into the queue.
        SlurmError: Slurm refuses, or it has not got the job.
    """
    try:
        return slurm.submit(script, *options, directory=directory)
    except slurm.NoAnswerError as error:
        found = _look(run, before, error)
        if found is None:
            raise slurm.SlurmError(f"{error}; the queue does not have the job: try again") from None
        return found


def _look(run: Path, before: Collection[str], error: slurm.NoAnswerError) -> str | None:
    for number in range(LOOKS):
        if number > 0:
            time.sleep(PAUSE)
        try:
            jobs = slurm.queue()
        except slurm.SlurmError:
            if number + 1 < LOOKS:
                continue
            raise UnknownError(
                f"{error}; the job may be in the queue all the same, so {run} is kept: look with "
                "`mmlab jobs` before submitting again"
            ) from None
        for job in jobs:
            identity = job.id.partition("_")[0]
            if job.comment == f"{MARK}{run}" and identity not in before:
                return identity
    return None
