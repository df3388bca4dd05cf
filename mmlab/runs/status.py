"""How a run stands, in a file that people, `mmlab jobs` and the next attempt of the run read."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Literal, NamedTuple

from mmlab.runs.directory import write_json

FILE = "status.json"
State = Literal["running", "finished", "preempted", "failed", "hung"]


class Status(NamedTuple):
    """How a run stands."""

    state: State
    step: int = 0
    """Steps of the optimizer that are done."""
    steps: int | None = None
    """Steps in all; None: not known yet."""
    samples_per_second: float | None = None
    """Over all ranks."""
    eta_seconds: float | None = None
    """To the end of training."""
    saved_step: int | None = None
    """Step of the newest complete checkpoint."""
    saved_at: float | None = None
    """When it was complete, Unix seconds."""
    save_seconds: float | None = None
    """What the last save took."""
    restarts: int = 0
    """How often the run has begun again."""
    job: str | None = None
    """The Slurm job that runs it, `1001` or `1001_3`."""
    updated: float = 0.0
    """Unix seconds."""
    reason: str | None = None
    """Why it is no longer running."""


def read_status(run: Path) -> Status | None:
    """How a run stands, or None where it has not said so yet."""
    try:
        found = json.loads((run / FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return Status(**{name: value for name, value in found.items() if name in Status._fields})


def write_status(run: Path, status: Status) -> None:
    """Say how a run stands; stamps it with the time."""
    write_json(run / FILE, status._replace(updated=time.time())._asdict())
