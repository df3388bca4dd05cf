"""Slurm's own commands, called with a time limit, and what they print as objects."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from mmlab.launch.duration import seconds_of

SECONDS = 30.0
"""A controller that has not answered by then is in trouble."""
ACTIVE = ("PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "STOPPED", "COMPLETING", "REQUEUED", "RESIZING")
"""States of jobs that have not ended (`REQUEUE_HOLD` and the like begin with one of them)."""
_QUEUE = "%i|%T|%r|%M|%V|%j|%k"
_PARTITIONS = "%P|%a|%l|%D|%c|%m|%G"


class SlurmError(ValueError):
    """Slurm is not there, does not answer, or refuses; in a line or two."""


@dataclass(frozen=True)
class Job:
    """A job, or a task of an array, that Slurm knows."""

    id: str
    """`1001`, or `1001_3`."""
    state: str
    reason: str
    """Why it waits, or `None`."""
    elapsed: str
    submitted: str
    name: str
    comment: str

    @property
    def active(self) -> bool:
        """Whether it waits or runs."""
        return self.state.startswith(ACTIVE)


@dataclass(frozen=True)
class NodeGroup:
    """Nodes of a partition that are alike."""

    partition: str
    default: bool
    up: bool
    limit: int | None
    """Seconds that a job may take; None: for ever."""
    nodes: int
    cpus: int
    memory: int
    """MB of each node."""
    gpus: int


def available() -> bool:
    """Whether this machine can talk to a cluster."""
    return shutil.which("sbatch") is not None


def call(*words: str, seconds: float = SECONDS, directory: Path | None = None) -> str:
    """What a command of Slurm prints.

    Raises:
        SlurmError: The command is not there, fails, or does not answer.
    """
    # Inside an allocation, its variables would be taken for options of what is submitted from there.
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("SLURM_") or name in ("SLURM_CONF", "SLURM_TIME_FORMAT")
    }
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=seconds, check=False, cwd=directory,
            env=environment | {"SLURM_TIME_FORMAT": "standard", "LC_ALL": "C"},
        )  # fmt: skip
    except FileNotFoundError:
        raise SlurmError(
            f"there is no {words[0]} on this machine: use a login node of the cluster (or load its module)"
        ) from None
    except subprocess.TimeoutExpired:
        raise SlurmError(
            f"{words[0]} has not answered within {seconds:g} s: is Slurm's controller up (scontrol ping)?"
        ) from None
    if done.returncode != 0:
        said = done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}"
        raise SlurmError(f"{words[0]}: {' '.join(said.split())}")
    return done.stdout


def submit(script: Path, *options: str, directory: Path | None = None) -> str:
    """Queue a script; the id of the job."""
    return call("sbatch", "--parsable", *options, str(script), directory=directory).strip().split(";")[0]


def queue() -> list[Job]:
    """All my jobs that Slurm still knows, ended ones too, a task of an array each for itself."""
    text = call("squeue", "--noheader", "-r", "-t", "all", "-u", getpass.getuser(), "-o", _QUEUE)
    return parse_queue(text)


def parse_queue(text: str) -> list[Job]:
    """Jobs of what squeue prints; a comment may hold any character but a line break."""
    return [Job(*line.split("|", 6)) for line in text.splitlines() if line.count("|") >= 6]


def show(job: str) -> dict[str, str]:
    """What `scontrol show job` says of a job, by name.

    Raises:
        SlurmError: Slurm does not know the job any more.
    """
    lines = call("scontrol", "show", "-o", "job", job).splitlines()
    return parse_record(lines[0]) if lines else {}


def parse_record(line: str) -> dict[str, str]:
    """`Key=value` pairs of a line of `scontrol -o`; values may hold blanks and equal signs."""
    found: dict[str, str] = {}
    key = None
    for word in line.split(" "):
        match = re.match(r"([A-Z][\w:/.]*)=", word, re.ASCII)
        if match is not None:
            key = match[1]
            found[key] = word[match.end() :]
        elif key is not None:
            found[key] += f" {word}"
    return {key: value.strip() for key, value in found.items()}


def partitions() -> list[NodeGroup]:
    """The nodes of each partition that I may see."""
    # -e: nodes that differ are not thrown together.
    return parse_partitions(call("sinfo", "--noheader", "-e", "-o", _PARTITIONS))


def parse_partitions(text: str) -> list[NodeGroup]:
    """Groups of nodes of what sinfo prints."""
    found = []
    for line in text.splitlines():
        fields = line.split("|")
        if len(fields) != 7:
            continue
        name, up, limit, nodes, cpus, memory, gres = (field.strip() for field in fields)
        try:
            seconds = seconds_of(limit)
        except ValueError:  # "n/a"
            seconds = None
        found.append(
            NodeGroup(
                name.rstrip("*"), name.endswith("*"), up == "up", seconds, int(nodes),
                int(cpus.rstrip("+")), int(memory.rstrip("+")), gpus_of(gres),
            )
        )  # fmt: skip
    return found


def gpus_of(gres: str) -> int:
    """GPUs in a node's generic resources, such as `gpu:a100:4(S:0-1),nvme:1`."""
    without_places = re.sub(r"\([^)]*\)", "", gres)
    total = 0
    for one in without_places.split(","):
        kind, *rest = one.split(":")
        if kind == "gpu":
            total += int(rest[-1]) if rest and rest[-1].isdigit() else 1
    return total


def settings() -> dict[str, str]:
    """The cluster's configuration, such as `KillWait` and `SLURM_VERSION`."""
    pairs = (line.split("=", 1) for line in call("scontrol", "show", "config").splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, value in pairs}
