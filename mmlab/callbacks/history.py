"""All logged numbers of a run in one CSV file, which goes on where the run goes on."""

from __future__ import annotations

import csv
import io
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from mmlab.callbacks.spared import spared
from mmlab.runs.directory import put_text

STEP = "step"
VALIDATION = "val/"
"""What names of what a validation gives begin with."""


class Row(NamedTuple):
    """What was logged at once."""

    metrics: dict[str, Any]
    step: int
    """Steps of the optimizer that were done before."""


class History(Logger):
    """Writes `FOLDER/metrics.csv`: a line for each time that something is logged, at once.

    Lightning's own logger begins the file anew in a run that goes on, and keeps the last lines in memory,
    where a kill takes them.

    Args:
        save_dir: Folder of the file, as RUN/logs.
    """

    def __init__(self, save_dir: str) -> None:
        super().__init__()
        self.path = Path(save_dir) / "metrics.csv"
        self._columns: list[str] = []
        """Empty after a write that failed: it may have left half a line, so all is written anew."""
        self._waiting: list[dict[str, Any]] = []
        """Rows for which the disk had no room."""

    @property
    def name(self) -> str:
        """Lightning asks for it."""
        return self.path.parent.name

    @property
    def version(self) -> str:
        """Lightning asks for it: a run has one."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run directory has the whole config."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Write a line."""
        row = plain(metrics)
        if step is not None:
            row[STEP] = step
        self._waiting.append(row)
        columns, self._columns = self._columns, []
        with spared(self.path):
            if all(set(each) <= set(columns) for each in self._waiting):
                with self.path.open("a", newline="", encoding="utf-8") as file:
                    csv.DictWriter(file, columns, lineterminator="\n").writerows(self._waiting)
                self._columns = columns
            else:
                self._rewrite([*self.rows_as_text(), *self._waiting])
            self._waiting = []

    def go_on(self, step: int, validated: bool = True) -> list[Row]:
        """Forget what was logged after a checkpoint, in a run that goes on from it; on rank 0.

        Args:
            step: Steps that the checkpoint has done.
            validated: False: the run goes on with a validation of that step, so what came of it before, and
                what came after it, is forgotten too.

        Returns:
            What stays.
        """
        rows = []
        for row in self.rows_as_text():
            if not row.get(STEP) or int(row[STEP]) >= step:
                continue
            last = int(row[STEP]) == step - 1
            if last and not validated and any(row[name] for name in row if name.startswith(VALIDATION)):
                break
            rows.append(row)
        self._rewrite(rows)
        return [
            Row({name: float(value) for name, value in row.items() if name != STEP and value}, int(row[STEP]))
            for row in rows
        ]

    def rows_as_text(self) -> list[dict[str, Any]]:
        """The lines of the file; what a line lacks is empty."""
        if not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            # A line that was half written when the disk was full or the machine went down does not end.
            whole = [line for line in file if line.endswith("\n")]
        return [row for row in csv.DictReader(whole) if None not in row.values()]

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        names = {name for row in rows for name in row if row[name] not in ("", None)}
        columns = [*sorted(names - {STEP}), STEP]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        put_text(self.path, text.getvalue())
        self._columns = columns


def plain(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What Lightning logs, as numbers of Python."""
    return {name: value.item() if isinstance(value, Tensor) else value for name, value in metrics.items()}
