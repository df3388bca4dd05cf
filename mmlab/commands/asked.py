"""What a command line asks of a cluster: options of `submit` and `doctor`, over those of a site profile."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from dataclasses import replace
from pathlib import Path

import yaml

from mmlab.launch.freeze import config_files
from mmlab.launch.job import JobSpec, Resources, check_name
from mmlab.launch.profile import Profile
from mmlab.runs.directory import new_id

_SITE = ("partition", "account", "qos", "constraint")


def add_resources(parser: argparse.ArgumentParser) -> None:
    """Add what both verbs take."""
    resources = parser.add_argument_group("resources (default: those of the profile)")
    resources.add_argument("--nodes", type=int, metavar="N")
    resources.add_argument("--gpus-per-node", type=int, metavar="N", help="default 1; 0: compute on CPUs")
    resources.add_argument("--tasks-per-node", type=int, metavar="N", help="ranks; default: one for each GPU")
    resources.add_argument("--cpus-per-task", type=int, metavar="N", help="loader workers and threads")
    resources.add_argument("--mem", metavar="SIZE", help="of each node, such as 64G")
    resources.add_argument(
        "--time", metavar="TIME", help="such as 12:00:00, 1-12 (days-hours) or 90 (minutes)"
    )
    site = parser.add_argument_group("site")
    site.add_argument("--profile", type=Path, metavar="FILE", help="see slurm/profiles/example.yaml")
    for name in _SITE:
        site.add_argument(f"--{name}", metavar="NAME")
    run = parser.add_argument_group("run")
    run.add_argument("--name", help="of the job and of the run's folder; default: the config's `name`")
    run.add_argument("--runs", type=Path, metavar="DIR", help="folder of all run directories; default runs")
    run.add_argument(
        "--signal-seconds", type=int, metavar="S",
        help="before the walltime ends, the run is told to save and is queued again (default 120)",
    )  # fmt: skip
    run.add_argument(
        "--requeues", type=int, metavar="M",
        help="failures (hangs, kills, errors) after which a run is queued again (default 3); never after the "
        "same failure at the same step twice",
    )  # fmt: skip


def job_asked(asked: argparse.Namespace, words: list[str]) -> JobSpec:
    """The job of a command line, with nothing frozen yet.

    Args:
        asked: What :func:`add_resources` has added.
        words: The others, for `mmlab fit`.

    Raises:
        ValueError: The profile does not fit, no config is named, no walltime, or a name that no job can have.
    """
    _refuse_misspelt(words, [name for name in vars(asked) if name not in ("run", "words")])
    files = config_files(words)
    if not files:
        raise ValueError("no config: name one with --config FILE, as for `mmlab fit`")
    site = Profile() if asked.profile is None else Profile.read(asked.profile)
    given = {name: value for name in _SITE if (value := getattr(asked, name)) is not None}
    # What sbatch would take from the environment where its script says nothing.
    usual = {
        name: value
        for name in _SITE
        if getattr(site, name) is None and (value := os.environ.get(f"SBATCH_{name.upper()}"))
    }
    site = replace(site, **(usual | given))
    name = asked.name if asked.name is not None else _name_of(files)
    check_name(name)
    runs = Path("runs") if asked.runs is None else asked.runs.expanduser()
    environment = (("WANDB_MODE", os.environ.get("WANDB_MODE") or "offline"),)
    return JobSpec(
        name=name,
        run=Path.cwd() / runs / name / new_id(),
        directory=Path.cwd(),
        words=tuple(words),
        resources=_resources(asked, site),
        profile=site,
        python=_python(site),
        environment=environment,
        array=getattr(asked, "array", None),
        dependency=getattr(asked, "dependency", None),
        signal_seconds=_first(asked.signal_seconds, site.signal_seconds, 120),
        requeues=_first(asked.requeues, site.requeues, 3),
    )


def _refuse_misspelt(words: list[str], names: list[str]) -> None:
    """Raise ValueError for a word that is nearly an option: `mmlab fit` would refuse it hours later."""
    options = [name.replace("_", "-") for name in names]
    for word in words:
        option = word.partition("=")[0]
        if option.startswith("--") and "." not in option:
            said = option.removeprefix("--").replace("_", "-")
            close = difflib.get_close_matches(said, options, n=1, cutoff=0.85)
            if close:
                raise ValueError(f"{option}: no such option; did you mean --{close[0]}?")


def _resources(asked: argparse.Namespace, site: Profile) -> Resources:
    time = asked.time if asked.time is not None else site.time
    if time is None:
        raise ValueError("no walltime: say --time, such as 12:00:00, or `time` in the profile")
    gpus = _first(asked.gpus_per_node, site.gpus_per_node, 1)
    tasks = _first(asked.tasks_per_node, site.tasks_per_node, max(1, gpus))
    if asked.tasks_per_node is None and asked.gpus_per_node is not None:
        tasks = max(1, gpus)  # the profile's tasks are for the profile's GPUs
    return Resources(
        nodes=_first(asked.nodes, site.nodes, 1),
        tasks_per_node=tasks,
        gpus_per_node=gpus,
        cpus_per_task=asked.cpus_per_task if asked.cpus_per_task is not None else site.cpus_per_task,
        mem=asked.mem if asked.mem is not None else site.mem,
        time=time,
    )


def _first(*values: int | None) -> int:
    """The first that is given; none is below zero."""
    found = next(value for value in values if value is not None)
    if found < 0:
        raise ValueError(f"{found}: a count is not below zero")
    return found


def _python(site: Profile) -> str:
    """The Python of the job: of what the profile makes ready, or the one that runs this."""
    if site.python is not None:
        return site.python
    return sys.executable if site.venv is None and site.container is None else "python"


def _name_of(files: list[Path]) -> str:
    """What the configs say the run is called, the last word first."""
    for file in reversed(files):
        with file.open(encoding="utf-8") as stream:
            try:
                content = yaml.load(stream, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
            except yaml.YAMLError as error:
                raise ValueError(f"{file} is no YAML: {' '.join(str(error).split())}") from None
        if isinstance(content, dict) and "name" in content:
            return str(content["name"])
    return "run"
