"""`mmlab submit`: freeze a run and queue it, in under a second and without torch."""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import mmlab
from mmlab.assets.cache import cache_dir
from mmlab.commands.asked import add_resources, job_asked
from mmlab.launch import slurm
from mmlab.launch.admission import check_cluster, check_job
from mmlab.launch.array import array_tasks
from mmlab.launch.freeze import Checkout, copy_configs, freeze_code
from mmlab.launch.job import JobSpec, batch_script
from mmlab.launch.queueing import queue_script
from mmlab.launch.submissions import Submission, note_submission
from mmlab.runs.directory import write_json
from mmlab.runs.status import newest_status

SUBMISSIONS = "submissions.jsonl"
"""In the cache: what I have submitted."""


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `mmlab submit`."""
    parser = verbs.add_parser(
        "submit",
        help="queue a training on a Slurm cluster",
        usage="mmlab submit --config FILE [--config FILE ...] [--key value ...] --time TIME [--nodes N] "
        "[--gpus-per-node N] [--profile FILE] [--dry-run] ...",
        description="Freezes configs and code into a run directory and queues the training there: later "
        "edits do not reach it. Words that are not named here go to `mmlab fit`, in their order.",
        allow_abbrev=False,
    )
    add_resources(parser)
    queue = parser.add_argument_group("queue")
    queue.add_argument(
        "--array", metavar="TASKS",
        help="a run for each number, such as 0-5%%2 (two at a time); %%a in the words of `mmlab fit` is the "
        "number",
    )  # fmt: skip
    queue.add_argument("--dependency", metavar="WHEN", help="such as afterok:1234")
    queue.add_argument(
        "--dry-run", action="store_true", help="print the batch script; write and queue nothing"
    )
    parser.set_defaults(run=run, words=[])


def run(arguments: argparse.Namespace) -> int:
    """Check, freeze, queue; returns the exit status.

    Raises:
        ValueError: The job could not work, or Slurm refuses it; nothing is left behind, except
            where it cannot be told whether the job waits.
    """
    began = time.monotonic()
    spec = job_asked(arguments, arguments.words)
    if spec.array is not None:
        array_tasks(spec.array)
    check_job(spec, newest_status(spec.run.parent).save_seconds)
    if arguments.dry_run:
        return _show(spec)
    if not slurm.available():
        raise ValueError(
            "there is no Slurm (sbatch) on this machine: submit on a login node of the cluster; --dry-run "
            "prints the batch script, `mmlab fit` trains here"
        )
    check_cluster(spec, slurm.partitions())
    script, record = _freeze(spec)
    try:
        job = queue_script(script, run=spec.run, directory=spec.directory)
    except slurm.SlurmError:
        shutil.rmtree(spec.run)
        raise
    # First of all: what follows may fail, and the job is in the queue.
    print(f"job {job}: {spec.name}, {_size(spec)}", flush=True)
    _note(spec, job, record)
    print(f"run directory: {spec.run}{'-TASK' if spec.array is not None else ''}")
    print(f"log: mmlab jobs logs {job}{'_TASK' if spec.array is not None else ''} -f")
    print(f"submitted in {time.monotonic() - began:.1f} s")
    return 0


def _show(spec: JobSpec) -> int:
    """Print the batch script, and what speaks against it where a cluster can be asked."""
    try:
        if slurm.available():
            check_cluster(spec, slurm.partitions())
    except slurm.SlurmError as error:
        print(f"# Not held against the cluster: {error}", file=sys.stderr)
    print(batch_script(spec), end="")
    folder = shlex.quote(str(spec.run))
    print(f"# Nothing was frozen or queued. By hand: mkdir -p {folder}, then sbatch this.", file=sys.stderr)
    return 0


def _freeze(spec: JobSpec) -> tuple[Path, dict[str, object]]:
    """Write the run directory; the batch script, and what is noted of the submission.

    Raises:
        ValueError: Something cannot be frozen; nothing is left behind.
    """
    try:
        return _write(spec)
    except BaseException:
        shutil.rmtree(spec.run, ignore_errors=True)
        raise


def _write(spec: JobSpec) -> tuple[Path, dict[str, object]]:
    code = spec.run / "code"
    words = copy_configs(spec.words, spec.run / "configs")
    # The package first: a checkout of it as the working directory must not stand before itself.
    folders = [Path(mmlab.__file__).parents[1], Path.cwd()]
    places, checkouts = freeze_code(folders, spec.run)
    if not any(place.is_relative_to(code) for place in places):
        places = []  # an installed package, and a directory without history: as they are
    installed = Path(mmlab.__file__).parents[1].resolve()
    spec = replace(spec, words=tuple(words), code=tuple(place for place in places if place != installed))
    script = spec.run / "job.sh"
    script.write_text(batch_script(spec), encoding="utf-8")
    record = _record(spec, checkouts)
    write_json(spec.run / "submission.json", record)
    return script, record


def _note(spec: JobSpec, job: str, record: dict[str, object]) -> None:
    """Write down which job it has become; where that fails, the job is in the queue all the same."""
    listed = Submission(job, spec.name, str(spec.run), spec.array, time.time())
    try:
        write_json(spec.run / "submission.json", {**record, "job": job})
        note_submission(cache_dir() / SUBMISSIONS, listed)
    except OSError as error:
        print(f"mmlab: job {job} is queued, but not on the list of my jobs: {error}", file=sys.stderr)


def _record(spec: JobSpec, checkouts: list[Checkout]) -> dict[str, object]:
    return {
        "command": ["mmlab", *sys.argv[1:]],
        "directory": str(spec.directory),
        "time": time.time(),
        "job": None,
        "array": spec.array,
        "requeues": spec.requeues,
        "version": mmlab.__version__,
        "code": [{"checkout": str(one.root), "commit": one.commit, "dirty": one.dirty} for one in checkouts],
    }


def _size(spec: JobSpec) -> str:
    asked = spec.resources
    devices = "GPUs" if asked.gpus_per_node > 0 else "CPU ranks"
    count = asked.nodes * asked.tasks_per_node
    several = "" if spec.array is None else f", array {spec.array}"
    nodes = "1 node" if asked.nodes == 1 else f"{asked.nodes} nodes"
    return f"{nodes} with {count} {devices} in all, for {asked.time}{several}"
