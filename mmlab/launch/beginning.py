"""What happens to a rank of a job before its run has begun, and nothing else would tell."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from mmlab.launch.own_job import OwnJob
from mmlab.runs.attempts import Failure, in_words, note_failure
from mmlab.runs.status import read_status

RUN = "MMLAB_RUN"
"""Where a batch script tells the ranks their run directory."""


def has_begun(run: Path, job: OwnJob) -> bool:
    """Whether this attempt of a job has come as far as to say how it stands; its callbacks tell the rest."""
    status = read_status(run)
    return (status.job, status.restarts) == (job.id, job.restarts)


@contextmanager
def failures_noted(
    hopeless: Callable[[Exception], bool], environment: Mapping[str, str] = os.environ
) -> Iterator[None]:
    """Note with which error a rank ends before its run has begun.

    The status of `srun` does not tell: it is the greatest of all ranks, so that of those which were ended
    because one had failed.

    Args:
        hopeless: Whether another attempt would meet the error again.
        environment: Of the rank.
    """
    try:
        yield
    except Exception as error:
        job = OwnJob.find(environment)
        if job is not None and RUN in environment:
            run, rank = Path(environment[RUN]), int(environment.get("SLURM_PROCID", "0"))
            with suppress(OSError):  # the error itself is what matters
                if not has_begun(run, job):
                    note_failure(run, Failure(in_words(error), 0, rank=rank, hopeless=hopeless(error)))
        raise
