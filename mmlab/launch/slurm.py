"""Slurm's own commands, called with a time limit, and what they print as objects."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import subprocess
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from mmlab.launch.duration import seconds_of

SECONDS = 30.0
"""A controller that has not answered by then is in trouble."""
ACTIVE = ("PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "STOPPED", "COMPLETING", "REQUEUED", "RESIZING")
"""States of jobs that have not ended (`REQUEUE_HOLD` and the like begin with one of them)."""
_OPTIONS = ("SLURM_", "SQUEUE_", "SINFO_", "SCANCEL_")
"""Variables that Slurm's commands take for options begin so."""
_CLUSTER = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT")
"""But these say which cluster is asked, and who asks."""
_LOST = ("Socket timed out", "Zero Bytes were transmitted", "Message receive failure")
"""What sbatch says where its question has left, and no answer has come."""
_VARIABLES = {
    "time": ("TIMELIMIT",),
    "mem": ("MEM_PER_NODE", "MEM_PER_CPU", "MEM_PER_GPU"),
    "gpus-per-node": ("GPUS_PER_NODE", "GPUS", "GPUS_PER_TASK", "GRES"),
    "output": ("OUTPUT", "ERROR"),
    "requeue": ("REQUEUE", "NO_REQUEUE"),
}
"""Variables of sbatch against an option, where it is not just the one that is called as it is."""
_NEVER = {"ARRAY_INX", "WAIT"}
"""An array would train twice in one run directory, and to wait for the end is no submission."""
_QUEUE = "%i|%T|%r|%M|%V|%j|%k"
_PARTITIONS = "%P|%a|%l|%D|%c|%m|%G"


class SlurmError(ValueError):
    """Slurm is not there, does not answer, or refuses; in a line or two."""


class NoAnswerError(SlurmError):
    """Slurm has not answered; it may have done all the same what it was asked for."""


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


def call(
    *words: str, seconds: float = SECONDS, directory: Path | None = None, without: Collection[str] = ()
) -> str:
    """What a command of Slurm prints.

    Args:
        words: The command.
        seconds: It may take.
        directory: Where.
        without: Variables that it is not to see.

    Raises:
        SlurmError: The command is not there, fails, or does not answer.
    """
    # Inside an allocation, its variables would be taken for options of what is submitted from there. And
    # those by which a person changes what a command prints or ends would change what is read here.
    environment = {
        name: value
        for name, value in os.environ.items()
        if (not name.startswith(_OPTIONS) or name in _CLUSTER) and name not in without
    }
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=seconds, check=False, cwd=directory,
            env=environment | {"SLURM_TIME_FORMAT": "standard", "LC_ALL": "C"},
            start_new_session=True,  # a signal that ends a job must not end what its ranks ask of Slurm
        )  # fmt: skip
    except FileNotFoundError:
        raise SlurmError(
            f"there is no {words[0]} on this machine: use a login node of the cluster (or load its module)"
        ) from None
    except subprocess.TimeoutExpired:
        raise NoAnswerError(
            f"{words[0]} has not answered within {seconds:g} s: is Slurm's controller up (scontrol ping)?"
        ) from None
    if done.returncode != 0:
        said = done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}"
        lost = any(words in said for words in _LOST)
        raise (NoAnswerError if lost else SlurmError)(f"{words[0]}: {' '.join(said.split())}")
    return done.stdout


def submit(script: Path, *options: str, directory: Path | None = None) -> str:
    """Queue a script; the id of the job.

    Raises:
        NoAnswerError: The job may be in the queue, or not.
        SlurmError: It is not.
    """
    words = ["sbatch", "--parsable", *options, str(script)]
    without = overridden(script.read_text(encoding="utf-8"))
    return call(*words, directory=directory, without=without).strip().split(";")[0]


def overridden(script: str) -> set[str]:
    """Variables by which sbatch would take something else than a script says: they come before its lines."""
    said = re.findall(r"^#SBATCH\s+--([a-z-]+)", script, re.MULTILINE)
    names = {name for option in said for name in _VARIABLES.get(option, (option.upper().replace("-", "_"),))}
    return {f"SBATCH_{name}" for name in names | _NEVER}


def queue() -> list[Job]:
    """All my jobs that Slurm still knows, ended ones too, a task of an array each for itself."""
    text = call("squeue", "--noheader", "-a", "-r", "-t", "all", "-u", getpass.getuser(), "-o", _QUEUE)
    return parse_queue(text)


def parse_queue(text: str) -> list[Job]:
    """Jobs of what squeue prints; a comment may hold any character but a line break."""
    return [Job(*line.split("|", 6)) for line in text.splitlines() if line.count("|") >= 6]


def show(job: str, *, seconds: float = SECONDS) -> dict[str, str]:
    """What `scontrol show job` says of a job, by name, within so many seconds.

    Raises:
        SlurmError: Slurm does not know the job any more.
    """
    lines = call("scontrol", "show", "-o", "job", job, seconds=seconds).splitlines()
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
    return parse_partitions(call("sinfo", "--noheader", "-a", "-e", "-o", _PARTITIONS))


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


def settings(*, seconds: float = SECONDS) -> dict[str, str]:
    """The cluster's configuration, such as `KillWait` and `SLURM_VERSION`."""
    lines = call("scontrol", "show", "config", seconds=seconds).splitlines()
    pairs = (line.split("=", 1) for line in lines if "=" in line)
    return {key.strip(): value.strip() for key, value in pairs}
