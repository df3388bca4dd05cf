"""Walltimes as Slurm writes them."""

from __future__ import annotations

import re

_FORMS = "MINUTES, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS"


def seconds_of(text: str) -> int | None:
    """Seconds of a walltime; None for one without a limit.

    Args:
        text: `90` (minutes), `90:00` (minutes, seconds), `1:30:00`, `2-12`, `2-12:00`, `2-12:00:00`,
            `infinite`, `UNLIMITED`.

    Raises:
        ValueError: It is none of these, or zero.
    """
    if text.lower() in ("infinite", "unlimited"):
        return None
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text.strip(), re.ASCII)
    if match is None:
        raise ValueError(f"{text!r} is no walltime: write {_FORMS}")
    days, *rest = match.groups()
    parts = [int(part) for part in rest if part is not None]
    if days is not None:
        hours, minutes, seconds = [*parts, 0, 0][:3]
        total = int(days) * 86_400 + hours * 3600 + minutes * 60 + seconds
    elif len(parts) == 3:
        total = parts[0] * 3600 + parts[1] * 60 + parts[2]
    else:
        total = parts[0] * 60 + (parts[1] if len(parts) == 2 else 0)
    if total == 0:
        raise ValueError(f"a walltime of {text} is no time at all: write {_FORMS}")
    return total


def duration_text(seconds: int | float) -> str:
    """A duration for people: `45 s`, `12 min`, `3 h 20 min`, `2 d 4 h`."""
    whole = round(max(0.0, seconds))
    if whole < 120:
        return f"{whole} s"
    minutes = round(whole / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"
