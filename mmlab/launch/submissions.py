"""The list of what I have submitted: Slurm forgets jobs minutes after they end."""

from __future__ import annotations

import errno
import fcntl
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from mmlab.launch.array import array_tasks

EVERY = 100
"""Lines after which those of folders that are gone are looked for."""


@dataclass(frozen=True)
class Submission:
    """One call of sbatch."""

    job: str
    name: str
    run: str
    """The run directory; of an array, the tasks' directories are this with `-TASK` behind."""
    array: str | None
    time: float
    """Seconds since 1970."""

    def runs(self) -> dict[str, Path]:
        """The run directory of each job, or task of the array, by id."""
        if self.array is None:
            return {self.job: Path(self.run)}
        return {f"{self.job}_{n}": Path(f"{self.run}-{n}") for n in array_tasks(self.array)}


def note_submission(path: Path, submission: Submission) -> None:
    """Add a line to the list; now and then, lines of folders that are gone are dropped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        _lock(file, fcntl.LOCK_EX)  # homes are shared between login nodes
        file.seek(0)
        text = file.read()
        lines = text.splitlines()
        if text and not text.endswith("\n"):
            file.write("\n")  # the disk had no room for the end of the last line
        if lines and len(lines) % EVERY == 0:
            kept = [line for line in lines if not _is_gone(line)]
            file.truncate(0)
            file.write("".join(f"{line}\n" for line in kept))
        file.write(json.dumps(asdict(submission)) + "\n")


def _lock(file: IO[str], how: int) -> None:
    """Lock a file, where its file system can: on Lustre that is an option of the mount."""
    try:
        fcntl.flock(file, how)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            raise


def _is_gone(line: str) -> bool:
    """Whether a line's run directory has been removed; one whose file system is not there may come back."""
    found = _parsed(line)
    return found is not None and not Path(found.run).exists() and Path(found.run).parents[1].exists()


def read_submissions(path: Path) -> list[Submission]:
    """All of the list, the newest last; lines that another version has written are passed over."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        _lock(file, fcntl.LOCK_SH)  # not while lines are dropped
        lines = file.read().splitlines()
    return [found for line in lines if (found := _parsed(line)) is not None]


def _parsed(line: str) -> Submission | None:
    try:
        content = json.loads(line)
        return Submission(
            str(content["job"]), str(content["name"]), str(content["run"]), content["array"],
            float(content["time"]),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError):
        return None
