"""`mmlab jobs`: my trainings on the cluster, their logs, and ending or queueing them again."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path

from mmlab.assets.cache import cache_dir
from mmlab.commands.submit import SUBMISSIONS
from mmlab.launch import slurm
from mmlab.launch.duration import duration_text
from mmlab.launch.ending import ended
from mmlab.launch.listing import Listed, chosen, list_jobs
from mmlab.launch.log import follow, of_rank
from mmlab.launch.queueing import queue_script
from mmlab.launch.submissions import Submission, note_submission, read_submissions

_COLUMNS = ("id", "name", "state", "step", "samples/s", "ETA", "saved", "restarts", "run directory")


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `mmlab jobs` and `mmlab jobs logs | cancel | requeue | ended`."""
    parser = verbs.add_parser(
        "jobs",
        help="my trainings on the cluster: list, logs, cancel, requeue",
        description="Lists my jobs of mmlab: those that wait or run, and those that ended in the last day.",
    )
    parser.add_argument("--all", action="store_true", help="also what ended earlier")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each job")
    parser.set_defaults(run=_table)
    actions = parser.add_subparsers(metavar="ACTION")
    logs = actions.add_parser("logs", help="what a job has said")
    logs.add_argument("id", metavar="ID")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until the job ends")
    logs.add_argument("--rank", type=int, metavar="R", help="only what this rank has said")
    logs.set_defaults(run=_logs)
    cancel = actions.add_parser("cancel", help="end jobs, or take them out of the queue")
    cancel.add_argument("ids", nargs="+", metavar="ID")
    cancel.set_defaults(run=_cancel)
    requeue = actions.add_parser(
        "requeue",
        help="queue jobs again, in their run directories",
        description="A job that runs is stopped first. One that Slurm has forgotten is submitted again. "
        "Refused is what has finished, and a run that another job trains.",
    )
    requeue.add_argument("ids", nargs="+", metavar="ID")
    requeue.set_defaults(run=_requeue)
    over = actions.add_parser("ended", help="for batch scripts: what follows the end of a run")
    over.add_argument("run_directory", type=Path, metavar="RUN")
    over.add_argument("status", type=int, metavar="STATUS")
    over.set_defaults(run=_ended)


def _jobs(*, everything: bool, only: Collection[str] = ()) -> list[Listed]:
    """What is known of my jobs.

    Args:
        everything: Also of what ended long ago.
        only: Where given, of forgotten jobs only these, or those of these arrays.
    """
    return list_jobs(slurm.queue(), _submissions(only), now=time.time(), everything=everything)


def _submissions(only: Collection[str]) -> list[Submission]:
    submissions = read_submissions(cache_dir() / SUBMISSIONS)
    if not only:
        return submissions
    wanted = {identity.partition("_")[0] for identity in only}
    return [one for one in submissions if one.job in wanted]


def _table(arguments: argparse.Namespace) -> int:
    jobs = _jobs(everything=arguments.all)
    if arguments.json:
        for job in jobs:
            print(json.dumps(_record(job)))
        return 0
    if not jobs:
        print("no jobs of mmlab wait, run, or ended in the last day (--all: earlier ones)")
        return 0
    rows = [_COLUMNS, *(_row(job, time.time()) for job in jobs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _row(job: Listed, now: float) -> tuple[str, ...]:
    status = job.status
    step = "" if status.step is None else str(status.step)
    if status.steps is not None:
        step += f"/{status.steps}"
    running = job.state == "RUNNING"
    speed, left = status.samples_per_second, status.eta_seconds
    return (
        job.id,
        job.name,
        job.state if job.reason is None else f"{job.state} ({job.reason})",
        step,
        f"{speed:.4g}" if running and speed is not None else "",
        duration_text(left) if running and left is not None else "",
        "" if status.saved_at is None else f"{duration_text(now - status.saved_at)} ago",
        "" if status.restarts is None else str(status.restarts),
        str(job.run),
    )


def _record(job: Listed) -> dict[str, object]:
    status = job.status
    return {
        "id": job.id, "name": job.name, "state": job.state, "reason": job.reason, "run": str(job.run),
        "step": status.step, "steps": status.steps, "samples_per_second": status.samples_per_second,
        "eta_seconds": status.eta_seconds, "saved_at": status.saved_at, "restarts": status.restarts,
        "updated": status.updated,
    }  # fmt: skip


def _logs(arguments: argparse.Namespace) -> int:
    try:
        jobs = _jobs(everything=True, only=[arguments.id])
    except slurm.SlurmError as error:
        jobs = list_jobs([], _submissions([arguments.id]), now=time.time(), everything=True)
        if not jobs:
            raise
        print(f"mmlab: {error}", file=sys.stderr)
    job = chosen(jobs, arguments.id)[0]
    print(f"{job.log}:", file=sys.stderr)
    if not arguments.follow and not job.log.exists():
        waits = f" ({job.reason})" if job.reason is not None else ""
        print(f"nothing yet: the job is {job.state}{waits}; -f waits for it", file=sys.stderr)
        return 0

    def going_on() -> bool:
        try:
            jobs = _jobs(everything=True, only=[job.id]) if arguments.follow else []
        except slurm.SlurmError:
            return True  # a controller that does not answer now may do so later
        return any(one.id == job.id and one.active for one in jobs)

    for line in follow(job.log, going_on):
        said = of_rank(line, arguments.rank)
        if said is not None:
            print(said, end="", flush=True)
    return 0


def _cancel(arguments: argparse.Namespace) -> int:
    jobs = _jobs(everything=True, only=arguments.ids)
    for identity in arguments.ids:
        if not any(job.active for job in chosen(jobs, identity)):
            print(f"job {identity} has ended already")
            continue
        slurm.call("scancel", identity)
        print(f"job {identity} is cancelled")
    return 0


def _requeue(arguments: argparse.Namespace) -> int:
    jobs = _jobs(everything=True)
    wanted = {job.id: job for identity in arguments.ids for job in chosen(jobs, identity)}
    active = {job.run: job.id for job in jobs if job.active}
    again: dict[Path, list[Listed]] = {}
    refused = 0
    for job in wanted.values():
        why = _refusal(job, active)
        if why is not None:
            print(f"mmlab: job {job.id} is not queued again: {why}", file=sys.stderr)
            refused += 1
            continue
        active[job.run] = job.id
        if job.state == "PENDING":
            print(f"job {job.id} waits already")
        elif job.state.isupper():  # Slurm still knows it
            slurm.call("scontrol", "requeue", job.id)
            print(f"job {job.id} is queued again", flush=True)
        else:
            again.setdefault(_script(job), []).append(job)
    for script, forgotten in again.items():
        _submit_again(script, forgotten, {job.id.partition("_")[0] for job in jobs if job.state.isupper()})
    return 2 if refused == len(wanted) else 0


def _refusal(job: Listed, active: Mapping[Path, str]) -> str | None:
    """Why a job must not run again; None: it may."""
    other = active.get(job.run, job.id)
    if other != job.id:
        return f"job {other} trains in {job.run}: two would spoil each other's run"
    if job.status.state == "finished" and not job.active:
        return f"{job.run} is finished; to train once more, submit it anew"
    return None


def _script(job: Listed) -> Path:
    """The script of a job that Slurm has forgotten.

    Raises:
        ValueError: There is none: the job was not made by `mmlab submit`, or its folder is gone.
    """
    script = job.base / "job.sh"
    if not script.exists():
        raise ValueError(f"job {job.id}: there is no {script} to submit again")
    return script


def _submit_again(script: Path, forgotten: list[Listed], before: set[str]) -> None:
    """Submit jobs of one script that Slurm has forgotten: tasks of an array together, no more at once.

    Args:
        script: The batch script.
        forgotten: One job, or tasks of one array.
        before: Ids that Slurm knows already.
    """
    first = forgotten[0]
    tasks = sorted(int(job.id.partition("_")[2]) for job in forgotten if "_" in job.id)
    array = ",".join(map(str, tasks)) or None
    limit = (first.array or "").partition("%")[2]
    if array is not None and limit:
        array += f"%{limit}"
    options = [] if array is None else [f"--array={array}"]
    identity = queue_script(script, *options, run=script.parent, before=before)
    for job in forgotten:
        task = job.id.partition("_")[2]
        print(f"job {job.id} is queued again as {identity}{f'_{task}' if task else ''}", flush=True)
    submission = Submission(identity, first.name, str(script.parent), array, time.time())
    try:
        note_submission(cache_dir() / SUBMISSIONS, submission)
    except OSError as error:
        print(f"mmlab: job {identity} is not on the list of my jobs: {error}", file=sys.stderr)


def _ended(arguments: argparse.Namespace) -> int:
    # To queue the job again ends it, and this process with it, before it has said so.
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        requeues = int(os.environ.get("MMLAB_REQUEUES", "3"))
        return ended(arguments.run_directory, arguments.status, requeues=requeues)
    finally:
        signal.signal(signal.SIGTERM, before)
