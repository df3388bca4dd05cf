"""The run directory: one folder that says what ran, on which code and data, and what came out."""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

SHARED_ID = "MMLAB_RUN_ID"
"""Processes that this one starts (the other ranks) read the run's id here."""


def run_id() -> str:
    """The id of this run, the same in all of its processes.

    Ranks that Lightning starts inherit the environment of the first. A launcher that starts every rank by
    itself (srun, torchrun) tells all of them one job and step, or is their common parent.

    Raises:
        ValueError: torchrun on several nodes without `--rdzv-id`: nothing is common to the ranks.
    """
    shared = os.environ.get(SHARED_ID)
    if shared is None:
        shared = launched_id() or new_id()
        os.environ[SHARED_ID] = shared
    return shared


def new_id() -> str:
    """An id that sorts by time."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def launched_id() -> str | None:
    """What a launcher gives its ranks in common; None where this process starts the others itself."""
    job, step = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_STEP_ID")
    if job is not None and step is not None and os.environ.get("SLURM_NTASKS", "1") != "1":
        return f"job-{job}-{step}"
    launch = os.environ.get("TORCHELASTIC_RUN_ID")
    if launch is None:
        return None
    if launch != "none":
        return f"torchrun-{launch}"
    if os.environ.get("GROUP_WORLD_SIZE", "1") != "1":
        raise ValueError("torchrun on several nodes needs --rdzv-id, by which the ranks know one run")
    return f"torchrun-{os.environ.get('MASTER_PORT')}-{os.getppid()}"


def attempt_id() -> str | None:
    """What tells this attempt of a run from those before, the same for all ranks that a launcher started.

    None where this process starts the others itself, or is one of those.
    """
    job, step = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_STEP_ID")
    if job is not None and step is not None and os.environ.get("SLURM_NTASKS", "1") != "1":
        return f"{job}-{step}-{os.environ.get('SLURM_RESTART_COUNT', '0')}"
    launch = launched_id()
    counts = [os.environ.get(name, "0") for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")]
    return None if launch is None else "-".join([launch, *counts])


def run_directory(root: Path, name: str) -> Path:
    """`root/name/id`, not yet created.

    Raises:
        ValueError: If the name cannot be a folder's name.
    """
    if not re.fullmatch(r"[\w][\w.-]*", name):
        raise ValueError(
            f"the run's name is {name!r}: it names a folder, so use letters, digits, '.', '_' and '-' only"
        )
    return root / name / run_id()


def describe_run(directory: Path, config: str, data_digests: Mapping[str, str]) -> None:
    """Write what is needed to run the same again: config, command, code, packages, data.

    Args:
        directory: The run directory; created where missing.
        config: The resolved configuration as YAML.
        data_digests: Digest of the shards of each split.
    """
    directory.mkdir(parents=True, exist_ok=True)
    put_text(directory / "config.yaml", config)
    record = {
        "command": sys.argv,
        "python": sys.version,
        "git_commit": _frozen_commit(Path(__file__)) or _git("rev-parse", "HEAD"),
        "packages": {d.name: d.version for d in metadata.distributions() if d.name},
        "data": dict(data_digests),
    }
    put_text(directory / "run.json", json.dumps(record, indent=1, sort_keys=True) + "\n")
    difference = _git("diff", "HEAD")
    if difference:
        put_text(directory / "git.diff", difference + "\n")


def write_json(path: Path, content: Mapping[str, object], *, durable: bool = True) -> None:
    """Write a JSON file as :func:`put_text` does."""
    # JSON has no NaN: what could not be measured is null.
    finite = {key: None if value != value else value for key, value in content.items()}
    put_text(path, json.dumps(finite, indent=1, allow_nan=False) + "\n", durable=durable)


def put_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Write a file so that a reader sees the old content or the new, never half of it.

    Args:
        path: Of the file.
        text: All of it.
        durable: Also after a power cut, at the cost of waiting for the disk. Without it the file may be empty
            then: for what is written every few seconds.

    Raises:
        OSError: With the path in it, also where the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # Data may hold half of a surrogate pair, which no file can.
        with temporary.open("w", encoding="utf-8", errors="replace") as file:
            file.write(text)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _frozen_commit(file: Path) -> str | None:
    """The commit of the checkout that `mmlab submit` has copied a file from; None where it is no copy."""
    for folder in file.parents:
        record = folder.parent / "submission.json"
        if folder.name == "code" and record.exists():
            checkouts = json.loads(record.read_text(encoding="utf-8"))["code"]
            commit: str | None = checkouts[0]["commit"] if checkouts else None
            return commit
    return None


def _git(*arguments: str) -> str | None:
    """What git says about the code of this package, or None where it knows nothing of it."""
    package = Path(__file__).parent
    if arguments[0] != "ls-files" and not _git("ls-files", "."):
        return None  # a copy inside a checkout is not what is checked out
    try:
        answer = subprocess.run(
            ["git", "-C", str(package), *arguments], capture_output=True, text=True, timeout=30, check=False
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
