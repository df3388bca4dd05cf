"""Site profiles: what a cluster wants of every job, in one YAML file."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

RUNTIMES = ("apptainer", "pyxis")


@dataclass(frozen=True)
class Container:
    """Where the ranks find Python, if not on the nodes."""

    image: str
    """A file, or a name that the runtime knows."""
    runtime: str = "apptainer"
    """`apptainer`, or `pyxis`: an option of srun."""
    options: tuple[str, ...] = ()
    """Words for the runtime, such as `--bind=/scratch`, or for srun such as `--container-mounts=/scratch`."""


@dataclass(frozen=True)
class Profile:
    """What a site wants; everything but `environment` and `setup` may be overridden on the command line."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    options: tuple[str, ...] = ()
    """Further options of sbatch, such as `--exclusive`."""
    modules: tuple[str, ...] = ()
    """Environment modules to load."""
    venv: str | None = None
    """A virtual environment to activate."""
    python: str | None = None
    """The Python of the ranks; default: `python` of the environment or container, else that of `submit`."""
    container: Container | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of every rank."""
    setup: tuple[str, ...] = ()
    """Lines of shell before the ranks start."""
    nodes: int | None = None
    gpus_per_node: int | None = None
    tasks_per_node: int | None = None
    cpus_per_task: int | None = None
    mem: str | None = None
    time: str | None = None
    signal_seconds: int | None = None
    requeues: int | None = None

    @staticmethod
    def read(path: Path) -> Profile:
        """Read a profile.

        Raises:
            ValueError: It cannot be read, or a key is unknown or of the wrong kind; the file and key are
                named.
        """
        try:
            # Without YAML's guesses: it takes 12:00:00 for the number 43200.
            content = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
        except OSError as error:
            raise ValueError(f"--profile {path}: {error.strerror}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"--profile {path} is no YAML: {' '.join(str(error).split())}") from None
        if not isinstance(content, dict):
            raise ValueError(f"--profile {path} holds no keys: see slurm/profiles/example.yaml")
        known = {one.name: str(one.type) for one in dataclasses.fields(Profile)}
        return Profile(**{key: _value(path, key, value, known) for key, value in content.items()})


def _value(path: Path, key: str, value: Any, known: Mapping[str, str]) -> Any:
    """The value of one key, of the kind that its field has."""
    where = f"--profile {path}: {key}"
    kind = known.get(key)
    if kind is None:
        raise ValueError(f"{where} is no key of a profile: {_nearest(str(key), known)}")
    if kind.startswith("Container"):
        return _container(where, value)
    if kind.startswith("Mapping"):
        if not isinstance(value, dict) or not all(isinstance(one, str) for one in value.values()):
            raise ValueError(f"{where} takes names with values, such as {{NCCL_DEBUG: WARN}}")
        for name in value:
            if re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) is None:
                raise ValueError(f"{where}: {name!r} is no name of a variable")
        return value
    if kind.startswith("tuple"):
        return _lines(where, value)
    if not isinstance(value, str):
        raise ValueError(f"{where} takes one value, not {value!r}")
    if value in ("", "null", "~"):
        return None
    if kind.startswith("int"):
        if re.fullmatch(r"\d+", value, re.ASCII) is None:
            raise ValueError(f"{where} takes a whole number, not {value!r}")
        return int(value)
    return value


def _container(where: str, value: Any) -> Container:
    known = [one.name for one in dataclasses.fields(Container)]
    if not isinstance(value, dict) or "image" not in value:
        raise ValueError(f"{where} takes an image, such as {{image: mmlab.sif, runtime: apptainer}}")
    for key in value:
        if key not in known:
            raise ValueError(f"{where}.{key} is no key of a container: {_nearest(key, known)}")
    runtime = value.get("runtime", "apptainer")
    if runtime not in RUNTIMES:
        raise ValueError(f"{where}.runtime is {runtime!r}: it takes {' or '.join(RUNTIMES)}")
    return Container(str(value["image"]), runtime, _lines(f"{where}.options", value.get("options", [])))


def _lines(where: str, value: Any) -> tuple[str, ...]:
    """A list of strings; a single string is a list of its lines."""
    if isinstance(value, str):
        return tuple(value.splitlines())
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError(f"{where} takes a list of strings, not {value!r}")
    return tuple(value)


def _nearest(word: str, known: Iterable[str]) -> str:
    choices = sorted(known)
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"it takes {', '.join(choices)}"
