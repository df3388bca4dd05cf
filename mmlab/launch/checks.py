"""What `mmlab doctor` finds of a cluster, its nodes and this machine; without torch."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from mmlab.launch import slurm
from mmlab.launch.admission import START, check_cluster, check_job
from mmlab.launch.duration import duration_text, seconds_of
from mmlab.launch.job import JobSpec
from mmlab.launch.slurm import NodeGroup, SlurmError
from mmlab.runs.status import Status

Verdict = Literal["ok", "warn", "bad"]
_SCRATCH = 2**30
"""Bytes that loaders, compilers and W&B may want in $TMPDIR."""


class Check(NamedTuple):
    """One thing that was looked at."""

    what: str
    verdict: Verdict
    found: str
    remedy: str = ""


def check_request(spec: JobSpec, last: Status) -> list[Check]:
    """Whether the job makes sense by itself: ranks and devices, walltime, loader's CPUs.

    Args:
        spec: The job.
        last: Of the newest run of this name.
    """
    asked = spec.resources
    try:
        check_job(spec, last.save_seconds)
    except ValueError as error:
        return [Check("request", "bad", str(error))]
    found = []
    if asked.gpus_per_node == 0:
        found.append(Check("devices", "ok", f"{asked.tasks_per_node} CPU ranks on each node"))
    elif asked.tasks_per_node == asked.gpus_per_node:
        found.append(Check("devices", "ok", f"{asked.tasks_per_node} ranks for as many GPUs on each node"))
    else:
        idle = asked.gpus_per_node - asked.tasks_per_node
        remedy = f"--tasks-per-node {asked.gpus_per_node}"
        found.append(Check("devices", "warn", f"{idle} GPUs of each node would be idle", remedy))
    seconds = seconds_of(asked.time)
    save = "not known yet" if last.save_seconds is None else duration_text(last.save_seconds)
    text = (
        f"{asked.time}: start about {START} s, told to save {spec.signal_seconds} s ahead, last save: {save}"
    )
    if last.save_seconds is not None and last.save_seconds > spec.signal_seconds:
        remedy = f"--signal-seconds {round(2 * last.save_seconds)}"
        found.append(Check("walltime", "warn", f"{text}: at the end it may save weights alone", remedy))
    elif seconds is None or seconds > 10 * (START + spec.signal_seconds):
        found.append(Check("walltime", "ok", text))
    else:
        share = (START + spec.signal_seconds) / seconds
        found.append(Check("walltime", "warn", f"{text}; {share:.0%} is not training", "more --time"))
    return found


def check_slurm(spec: JobSpec, last: Status) -> list[Check]:
    """Whether the cluster takes the job, and what it does to jobs that it ends.

    Args:
        spec: The job.
        last: Of the newest run of this name.
    """
    if not slurm.available():
        text = "not on this machine: partitions, limits and nodes were not checked"
        return [Check("Slurm", "warn", text, "run this on a login node")]
    try:
        groups, settings = slurm.partitions(), slurm.settings()
    except SlurmError as error:
        return [Check("Slurm", "bad", str(error))]
    version = settings.get("SLURM_VERSION", "of unknown version")
    found = [Check("Slurm", "ok", f"{version}, cluster {settings.get('ClusterName', '')}".rstrip(", "))]
    found.append(_check_partition(spec, groups))
    return found + check_settings(settings, last)


def _check_partition(spec: JobSpec, groups: Sequence[NodeGroup]) -> Check:
    name = spec.profile.partition or "default"
    try:
        check_cluster(spec, groups)
    except ValueError as error:
        return Check("partition", "bad", str(error))
    count = sum(
        group.nodes for group in groups if group.partition == name or (group.default and name == "default")
    )
    return Check("partition", "ok", f"{name}: {count} nodes")


def check_settings(settings: Mapping[str, str], last: Status) -> list[Check]:
    """What the cluster's configuration means for a run that is ended.

    Args:
        settings: Of `scontrol show config`.
        last: Of the newest run of this name.
    """
    found = []
    word = settings.get("KillWait", "").split(" ")[0]
    if word.isdigit():
        text = f"{word} s from SIGTERM to SIGKILL"
        if last.save_seconds is None:
            found.append(Check("KillWait", "ok", f"{text}; how long a save takes is not known yet"))
        elif last.save_seconds > 0.8 * int(word):
            text += f", the last save took {duration_text(last.save_seconds)}"
            remedy = "a partition with GraceTime, or save more often: what was done since is lost"
            found.append(Check("KillWait", "warn", text, remedy))
        else:
            text += f", the last save took {duration_text(last.save_seconds)}"
            found.append(Check("KillWait", "ok", text))
    if settings.get("JobRequeue", "1") == "0":
        # The script says --requeue for itself; sites that set this often refuse that, too.
        text = "JobRequeue=0: jobs are not queued again by default"
        found.append(Check("requeue", "warn", text, "ask whether --requeue is allowed here"))
    else:
        found.append(Check("requeue", "ok", "jobs may be queued again"))
    if settings.get("ProctrackType") == "proctrack/linuxproc":
        text = "proctrack/linuxproc: SIGTERM reaches srun, which kills the ranks before they have saved"
        remedy = "rely on --signal-seconds and saves by time; sites use proctrack/cgroup against this"
        found.append(Check("signals", "warn", text, remedy))
    return found


def check_space(runs: Path, needed: int, what: str) -> Check:
    """Whether a folder's file system has room.

    Args:
        runs: It need not exist yet.
        needed: Bytes.
        what: Is to be stored there.
    """
    there = next(folder for folder in (runs, *runs.parents) if folder.exists())
    if not os.access(there, os.W_OK):
        return Check("space", "bad", f"{there} cannot be written to", "another folder (--runs)")
    free = shutil.disk_usage(there).free
    text = f"{_size(needed)} for {what}; {_size(free)} are free in {there}"
    if needed > free:
        return Check("space", "bad", text, "free some, keep fewer (checkpoint.save_top_k), or another --runs")
    if needed > free / 2:
        return Check("space", "warn", text, "other runs need room too")
    return Check("space", "ok", text)


def check_scratch(runs: Path) -> Check:
    """Whether temporary files have a place, apart from the runs."""
    named = os.environ.get("TMPDIR")
    folder = Path(named or tempfile.gettempdir())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        return Check("$TMPDIR", "bad", f"{folder} is no folder that can be written to", "export TMPDIR=/tmp")
    free = shutil.disk_usage(folder).free
    there = next(one for one in (runs, *runs.parents) if one.exists())
    shared = os.stat(folder).st_dev == os.stat(there).st_dev
    text = f"{folder}: {_size(free)} free" + (", on the file system of the runs" if shared else "")
    if free < _SCRATCH:
        return Check("$TMPDIR", "bad" if shared else "warn", text, "free some, or name another TMPDIR")
    return Check("$TMPDIR", "ok", text)


def check_port() -> Check:
    """Whether a process may listen at a port that others can reach."""
    try:
        with socket.socket() as one:
            one.bind(("", 0))
            one.listen()
            return Check("port", "ok", f"such as {one.getsockname()[1]}; each job asks for a free one")
    except OSError as error:
        return Check("port", "bad", f"no port to listen at: {error.strerror}")


def _size(count: int) -> str:
    return f"{count / 1e9:.3g} GB" if count >= 1e8 else f"{count / 1e6:.3g} MB"
