"""The list of what I have submitted: Slurm forgets jobs minutes after they end."""

from __future__ import annotations

import fcntl
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from mmlab.launch.array import array_tasks


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
    """Add a line to the list."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # homes are shared between login nodes
        file.write(json.dumps(asdict(submission)) + "\n")


def read_submissions(path: Path) -> list[Submission]:
    """All of the list, the newest last; lines that another version has written are passed over."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            content = json.loads(line)
            found.append(
                Submission(
                    str(content["job"]), str(content["name"]), str(content["run"]), content["array"],
                    float(content["time"]),
                )
            )  # fmt: skip
        except (ValueError, KeyError, TypeError):
            continue
    return found
