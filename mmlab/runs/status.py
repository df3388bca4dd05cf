"""How a run stands, in a file that people, `mmlab jobs` and the next attempt of the run read."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mmlab.runs.directory import write_json

FILE = "status.json"
State = Literal["running", "finished", "preempted", "failed", "hung"]
_TEXT = ("state", "job", "reason", "process")
_WHOLE = ("step", "steps", "saved_step", "restarts", "stopped_step", "idle_stops")


class Status(NamedTuple):
    """How a run stands; None: it has not said so."""

    state: str | None = None
    """One of :data:`State`."""
    step: int | None = None
    """Steps of the optimizer that are done."""
    steps: int | None = None
    """Steps in all."""
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
    stopped_step: int | None = None
    """Step of the newest complete checkpoint when the run was stopped last."""
    idle_stops: int | None = None
    """How often in a row its walltime has ended without a newer one."""
    restarts: int | None = None
    """How often its job had been requeued."""
    job: str | None = None
    """The Slurm job that runs it, `1001` or `1001_3`."""
    updated: float | None = None
    """Unix seconds."""
    reason: str | None = None
    """Why it is no longer running."""
    process: str | None = None
    """Host and number of the process that says so, `node1:4711`."""


def read_status(run: Path) -> Status:
    """How a run stands; what is missing or of another kind than it should be is None."""
    try:
        found = json.loads((run / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return Status()
    if not isinstance(found, dict):
        return Status()
    return Status(**{name: _checked(name, found.get(name)) for name in Status._fields})


def newest_status(name_folder: Path) -> Status:
    """The status that was written last, of all runs of a name."""
    found = [read_status(path.parent) for path in name_folder.glob(f"*/{FILE}")]
    return max(found, key=lambda one: one.updated or 0.0, default=Status())


def write_status(run: Path, status: Status) -> None:
    """Say how a run stands; stamps it with the time."""
    write_json(run / FILE, status._replace(updated=time.time())._asdict(), durable=False)


def _checked(name: str, value: Any) -> Any:
    if name in _TEXT:
        return value if isinstance(value, str) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if name in _WHOLE:
        return value if isinstance(value, int) else None
    return float(value)
