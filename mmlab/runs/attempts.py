"""How a run has failed, so that it does not fail in the same way for ever."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import NamedTuple

from mmlab.runs.directory import write_json

FILE = "failures.jsonl"
_RANKS = "ranks"
_SUFFIX = ".failure.json"
_BY_CHANCE = re.compile(r"0x[0-9a-f]+|\bp(?:id|rocess) \d+|:\d{4,5}\b|\d[\d.]* ?[kmgt]i?b\b", re.IGNORECASE)
"""Addresses, numbers of processes, ports and sizes: what the same failure says otherwise each time."""


class Failure(NamedTuple):
    """What ended a run before its time."""

    what: str
    """`ValueError: ...`, `hung in all_reduce`, `killed, status 137`."""
    step: int
    """Batches of training that were done before."""
    samples: str = ""
    """Keys of the samples of that step."""
    rank: int = 0
    follows: bool = False
    """Whether it is what a rank sees when another one has died."""
    hopeless: bool = False
    """Whether another attempt can be no better, as with a wrong setting."""
    time: float = 0.0
    """Unix seconds."""

    def like(self, other: Failure) -> bool:
        """Whether it is the same at the same step, but for what differs by chance (`pid 4711`)."""
        mine, others = (_BY_CHANCE.sub("#", one.what) for one in (self, other))
        return (mine, self.step) == (others, other.step)


def in_words(exception: BaseException) -> str:
    """The kind of an exception and the first line of what it says."""
    said = str(exception).strip().split("\n")[0]
    return f"{type(exception).__name__}: {said}" if said else type(exception).__name__


def note_failure(run: Path, failure: Failure) -> None:
    """What a rank of the attempt that runs now has to say before it ends; the first word counts."""
    path = run / _RANKS / f"rank{failure.rank}{_SUFFIX}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, failure._replace(time=time.time())._asdict())


def noted_failure(run: Path) -> Failure | None:
    """What the ranks of the last attempt have noted: the first in time, as the others follow from it."""
    found = [_read(path.read_text(encoding="utf-8")) for path in _notes(run)]
    whole = [failure for failure in found if failure is not None]
    return min(whole, key=lambda failure: (failure.follows, failure.time), default=None)


def clear_failure(run: Path) -> None:
    """Forget what the ranks have noted; the attempt is over, or another begins."""
    for path in _notes(run):
        path.unlink(missing_ok=True)


def _notes(run: Path) -> list[Path]:
    return sorted((run / _RANKS).glob(f"*{_SUFFIX}"))


def past_failures(run: Path) -> list[Failure]:
    """How the attempts before have failed, the last one last."""
    path = run / FILE
    if not path.exists():
        return []
    found = [_read(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [failure for failure in found if failure is not None]


def keep_failure(run: Path, failure: Failure) -> None:
    """Add the failure of an attempt that is over to those of the run."""
    path = run / FILE
    try:
        with path.open("a+", encoding="utf-8") as file:
            file.seek(0)
            before = file.read()
            # The disk may have had no room for the end of the last line.
            file.write(("" if before.endswith("\n") or not before else "\n") + _line(failure))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _line(failure: Failure) -> str:
    return json.dumps(failure._asdict()) + "\n"


def _read(text: str) -> Failure | None:
    """A failure as it was written; None where a full disk or a lost node has left a part of it."""
    try:
        return Failure(**json.loads(text))
    except (ValueError, TypeError):
        return None
