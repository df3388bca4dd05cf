"""What a run says of itself while it trains: `status.json` in its directory."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Status:
    """Where a run is; None: it does not know, or not yet."""

    state: str | None = None
    """`running`, `finished`, `preempted`, `failed` or `hung`."""
    step: int | None = None
    steps: int | None = None
    samples_per_second: float | None = None
    eta_seconds: float | None = None
    saved_at: float | None = None
    """Seconds since 1970."""
    save_seconds: float | None = None
    restarts: int | None = None
    job: str | None = None
    updated: float | None = None
    reason: str | None = None


def read_status(run: Path) -> Status:
    """The status of a run; all None where there is none that can be read."""
    try:
        content = json.loads((run / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return Status()
    if not isinstance(content, dict):
        return Status()
    return Status(
        _text(content, "state"), _whole(content, "step"), _whole(content, "steps"),
        _number(content, "samples_per_second"), _number(content, "eta_seconds"), _number(content, "saved_at"),
        _number(content, "save_seconds"), _whole(content, "restarts"), _text(content, "job"),
        _number(content, "updated"), _text(content, "reason"),
    )  # fmt: skip


def newest_status(name_folder: Path) -> Status:
    """The last written status of all runs of a name."""
    found = [read_status(path.parent) for path in name_folder.glob("*/status.json")]
    return max(found, key=lambda one: one.updated or 0.0, default=Status())


def _number(content: dict[str, Any], key: str) -> float | None:
    value = content.get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _whole(content: dict[str, Any], key: str) -> int | None:
    value = content.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _text(content: dict[str, Any], key: str) -> str | None:
    value = content.get(key)
    return value if isinstance(value, str) else None
