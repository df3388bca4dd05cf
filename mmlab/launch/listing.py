"""My jobs as a list: what Slurm knows, what I have submitted, and what the runs say of themselves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mmlab.launch.slurm import Job
from mmlab.launch.submissions import Submission
from mmlab.runs.status import Status, read_status

MARK = "mmlab "
"""A job of mmlab has this and the run directory as its comment."""
DAY = 86_400.0
OLD = 30 * DAY
"""What was submitted so long ago, and is not in the queue, is not looked at: there may be thousands."""


@dataclass(frozen=True)
class Listed:
    """A job, or a task of an array, and its run."""

    id: str
    name: str
    state: str
    """Slurm's, in capitals; where Slurm has forgotten the job, what the run says; `gone`: neither knows."""
    reason: str | None
    active: bool
    run: Path
    status: Status
    array: str | None = None
    """The array that it was submitted in, such as `0-5%2`, where that is known."""

    @property
    def log(self) -> Path:
        """The file that the job writes to."""
        task = self.id.partition("_")[2]
        own = self.run / f"slurm-{self.id}.log"
        return own if not task or own.exists() else self.base / own.name

    @property
    def base(self) -> Path:
        """The folder of the submission, which the tasks of an array share."""
        task = self.id.partition("_")[2]
        return self.run.with_name(self.run.name.removesuffix(f"-{task}")) if task else self.run


def list_jobs(
    queue: Iterable[Job], submissions: Iterable[Submission], *, now: float, everything: bool = False
) -> list[Listed]:
    """Jobs of mmlab, the newest last.

    Args:
        queue: What Slurm knows.
        submissions: What was submitted from this account.
        now: Seconds since 1970.
        everything: Also what ended more than a day ago.
    """
    known = {job.id: job for job in queue}
    found: list[Listed] = []
    # The newest first: a cluster may begin again with ids that it has given before.
    for submission in sorted(submissions, key=lambda one: one.time, reverse=True):
        for identity, run in submission.runs().items():
            job = known.get(identity)
            if job is not None and _is_of(job, submission, run):
                del known[identity]
                found.append(_in_queue(job, run, submission.array))
            elif everything or now - submission.time < OLD:
                status = read_status(run)
                if everything or now - max(submission.time, status.updated or 0.0) < DAY:
                    found.append(_forgotten(identity, submission, run, status))
    found += [_in_queue(job, _run_of(job), None) for job in known.values() if job.comment.startswith(MARK)]
    found.reverse()
    return sorted(found, key=lambda one: (_numbers(one.id), one.state.isupper()))


def _is_of(job: Job, submission: Submission, run: Path) -> bool:
    """Whether a job of a submission's id is of the submission: by its comment, if it has one."""
    if job.comment.startswith(MARK):
        return _run_of(job) == run
    return job.comment in ("", "(null)") and job.name == submission.name


def _run_of(job: Job) -> Path:
    """The run directory that a job has in its comment."""
    task = job.id.partition("_")[2]
    base = Path(job.comment.removeprefix(MARK))
    whole = not task or base.name.endswith(f"-{task}")  # slurm/sweep.sbatch says which task's it is
    return base if whole else base.with_name(f"{base.name}-{task}")


def _numbers(identity: str) -> list[int]:
    return [int(part) for part in identity.split("_") if part.isdigit()]


def _in_queue(job: Job, run: Path, array: str | None) -> Listed:
    reason = job.reason if job.state == "PENDING" and job.reason != "None" else None
    return Listed(job.id, job.name, job.state, reason, job.active, run, read_status(run), array)


def _forgotten(identity: str, submission: Submission, run: Path, status: Status) -> Listed:
    state = status.state or "gone"
    # A run that says it runs, and whose job Slurm has forgotten, was ended without a word.
    state = "gone" if state == "running" else state
    return Listed(identity, submission.name, state, None, False, run, status, submission.array)


def chosen(jobs: Iterable[Listed], identity: str) -> list[Listed]:
    """The jobs that an id names: one, or all tasks of an array.

    Args:
        jobs: As :func:`list_jobs` has sorted them: of an id that came round again, the one that counts last.
        identity: Of a job, a task, or an array.

    Raises:
        ValueError: It names none.
    """
    found = {job.id: job for job in jobs if identity in (job.id, job.id.partition("_")[0])}
    if not found:
        raise ValueError(f"no job {identity} of mmlab is known here: `mmlab jobs --all` lists them")
    return list(found.values())
