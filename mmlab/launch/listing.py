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

    @property
    def log(self) -> Path:
        """The file that the job writes to."""
        task = self.id.partition("_")[2]
        own = self.run / f"slurm-{self.id}.log"
        if not task or own.exists():
            return own
        # The tasks of an array share the folder of the submission.
        return self.run.with_name(self.run.name.removesuffix(f"-{task}")) / own.name


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
    known = {job.id: job for job in queue if job.comment.startswith(MARK)}
    found: dict[str, Listed] = {}
    for submission in submissions:
        for identity, run in submission.runs().items():
            job = known.pop(identity, None)
            status = read_status(run)
            last = max(submission.time, status.updated or 0.0)
            if job is not None or everything or now - last < DAY:
                found[identity] = _listed(identity, submission.name, run, job, status)
    for identity, job in known.items():
        task = identity.partition("_")[2]
        base = Path(job.comment.removeprefix(MARK))
        whole = not task or base.name.endswith(f"-{task}")  # slurm/sweep.sbatch says which task's it is
        run = base if whole else base.with_name(f"{base.name}-{task}")
        found[identity] = _listed(identity, job.name, run, job, read_status(run))
    return sorted(found.values(), key=lambda one: [int(part) for part in one.id.split("_") if part.isdigit()])


def _listed(identity: str, name: str, run: Path, job: Job | None, status: Status) -> Listed:
    if job is None:
        state = status.state or "gone"
        # A run that says it runs, and whose job Slurm has forgotten, was ended without a word.
        return Listed(identity, name, "gone" if state == "running" else state, None, False, run, status)
    reason = job.reason if job.state == "PENDING" and job.reason != "None" else None
    return Listed(identity, name, job.state, reason, job.active, run, status)


def chosen(jobs: Iterable[Listed], identity: str) -> list[Listed]:
    """The jobs that an id names: one, or all tasks of an array.

    Raises:
        ValueError: It names none.
    """
    found = [job for job in jobs if identity in (job.id, job.id.partition("_")[0])]
    if not found:
        raise ValueError(f"no job {identity} of mmlab is known here: `mmlab jobs --all` lists them")
    return found
