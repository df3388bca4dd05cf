"""Whether a cluster can run a job as it is asked for: told before anything is queued."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from mmlab.launch.duration import duration_text, seconds_of
from mmlab.launch.job import JobSpec, Resources
from mmlab.launch.slurm import NodeGroup

START = 30
"""Seconds that a run takes before its first step, at least: Python, torch, the model, the first batch."""
_OWN = ("--trainer.devices", "--trainer.num_nodes")
_MEMORY = {"K": 1 / 1024, "M": 1.0, "G": 1024.0, "T": 1024.0**2}


def check_job(spec: JobSpec, save_seconds: float | None) -> None:
    """Check what can be told without asking the cluster.

    Args:
        spec: The job.
        save_seconds: How long the last save of an earlier run took; None: not known.

    Raises:
        ValueError: The job could not work.
    """
    asked = spec.resources
    for name in ("nodes", "tasks_per_node"):
        if getattr(asked, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(asked, name)}: it must be at least 1")
    for word in spec.words:
        if word.partition("=")[0] in _OWN:
            raise ValueError(
                f"{word.partition('=')[0]} follows from --nodes and --tasks-per-node: leave it out"
            )
    if "--resume=never" in spec.words or ("--resume", "never") in zip(
        spec.words, spec.words[1:], strict=False
    ):
        raise ValueError(
            "--resume never: a job that is queued again would begin anew each time: leave it out; a "
            "submission has a run directory of its own"
        )
    if asked.gpus_per_node > 0 and asked.tasks_per_node > asked.gpus_per_node:
        raise ValueError(
            f"{asked.tasks_per_node} tasks on each node are more than its {asked.gpus_per_node} GPUs: each "
            f"task drives one device: --tasks-per-node {asked.gpus_per_node}, or --gpus-per-node 0 for CPUs"
        )
    if asked.mem is not None:
        memory_of(asked.mem)
    seconds = seconds_of(asked.time)
    needed = START + max(spec.signal_seconds, save_seconds or 0)
    if seconds is not None and seconds <= needed:
        last = "" if save_seconds is None else f" (the last save took {duration_text(save_seconds)})"
        raise ValueError(
            f"--time {asked.time} leaves nothing for training: starting takes about {START} s, and "
            f"{spec.signal_seconds} s before the end the run is told to save{last}: more --time, or less "
            "--signal-seconds"
        )


def check_cluster(spec: JobSpec, groups: Sequence[NodeGroup]) -> None:
    """Check what the cluster's partitions allow.

    Args:
        spec: The job.
        groups: Nodes of all partitions.

    Raises:
        ValueError: No partition of that name, too few nodes that are large enough, or too long a walltime.
    """
    names = sorted({group.partition for group in groups})
    wanted = spec.profile.partition
    if wanted is None:
        chosen = [group for group in groups if group.default]
        if not chosen:
            raise ValueError(
                f"the cluster has no default partition: name one of {', '.join(names)} (--partition)"
            )
    else:
        # Slurm takes the first of several that can run the job.
        chosen = []
        for name in wanted.split(","):
            found = [group for group in groups if group.partition == name]
            if not found:
                close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
                hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(names)}"
                raise ValueError(f"--partition {name}: the cluster has none of that name: {hint}")
            chosen += found
    partition = ",".join(dict.fromkeys(group.partition for group in chosen))
    chosen = [group for group in chosen if group.up]
    if not chosen:
        raise ValueError(f"partition {partition} is not up: name another (--partition)")
    _check_nodes(spec.resources, partition, chosen)
    seconds, limits = seconds_of(spec.resources.time), [group.limit for group in chosen]
    longest = None if None in limits else max(limit for limit in limits if limit is not None)
    # What a QOS allows may be more than its partition does.
    if longest is not None and spec.profile.qos is None and (seconds is None or seconds > longest):
        raise ValueError(
            f"--time {spec.resources.time} is above the limit of partition {partition}, "
            f"{duration_text(longest)}: ask for less; the run goes on when it is queued again"
        )


def _check_nodes(asked: Resources, partition: str, groups: Sequence[NodeGroup]) -> None:
    cpus = asked.tasks_per_node * (asked.cpus_per_task or 1)
    most_gpus, most_cpus = max(g.gpus for g in groups), max(g.cpus for g in groups)
    if asked.gpus_per_node > most_gpus:
        raise ValueError(
            f"--gpus-per-node {asked.gpus_per_node}: nodes of partition {partition} have {most_gpus} GPUs"
        )
    if cpus > most_cpus:
        raise ValueError(
            f"{asked.tasks_per_node} tasks of {asked.cpus_per_task or 1} CPUs on each node: nodes of "
            f"partition {partition} have {most_cpus} CPUs"
        )
    memory = 0.0 if asked.mem is None else memory_of(asked.mem)
    most_memory = max(g.memory for g in groups)
    if memory > most_memory:
        raise ValueError(f"--mem {asked.mem}: nodes of partition {partition} have {most_memory} MB")
    fitting = sum(
        g.nodes for g in groups if g.gpus >= asked.gpus_per_node and g.cpus >= cpus and g.memory >= memory
    )
    if asked.nodes > fitting:
        raise ValueError(
            f"--nodes {asked.nodes}: partition {partition} has {fitting} nodes that are large enough"
        )


def memory_of(text: str) -> float:
    """MB of `64G`, `4000` or `500M`, as Slurm reads it; `0` is all of a node.

    Raises:
        ValueError: It is none of these.
    """
    match = re.fullmatch(r"(\d+)([KMGT]?)B?", text.upper(), re.ASCII)
    if match is None:
        raise ValueError(f"--mem {text}: write such as 64G or 4000 (MB)")
    return int(match[1]) * _MEMORY[match[2] or "M"]
