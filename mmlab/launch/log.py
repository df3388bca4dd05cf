"""The log of a job: all of it, what one rank has said, or what is still being said."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_LABEL = re.compile(r"\s*(\d+): ?(.*)", re.DOTALL)
"""`srun --label` begins each line with the rank."""


def of_rank(line: str, rank: int | None) -> str | None:
    """A line of the log without its label, or None where another rank has said it.

    Args:
        line: With its line break.
        rank: None: every line, as it is.
    """
    if rank is None:
        return line
    match = _LABEL.match(line)
    return match[2] if match is not None and int(match[1]) == rank else None


def follow(path: Path, going_on: Callable[[], bool], *, pause: float = 0.5) -> Iterator[str]:
    """Lines of a file that grows, as they come.

    Args:
        path: It need not exist yet.
        going_on: Whether more may come; asked every ten pauses.
        pause: Seconds between looks.
    """
    place, rest, more, looks = 0, "", True, 0
    while True:
        if path.exists():
            if path.stat().st_size < place:
                place, rest = 0, ""  # it was begun anew
            with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
                file.seek(place)
                rest += file.read()
                place = file.tell()
            *lines, rest = rest.split("\n")
            yield from (f"{line}\n" for line in lines)
        if not more:
            if rest:
                yield f"{rest}\n"
            return
        looks += 1
        if looks % 10 == 1:
            more = going_on()
        if more:
            time.sleep(pause)
