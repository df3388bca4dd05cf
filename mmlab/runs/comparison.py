"""Runs of one config with several methods, side by side: what each cost and what it reached."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from mmlab.runs.table import format_value

CHECKPOINTS = "checkpoints"


class Measured(NamedTuple):
    """What is known of a finished run; None where the run did not record it."""

    score: float
    low: float | None
    """Of the score's 95 % interval over test samples."""
    high: float | None
    trained: int | None
    """Parameters."""
    total: int | None
    """Parameters."""
    peak_memory_gb: float | None
    step_seconds: float | None
    checkpoint_bytes: int | None


class Compared(NamedTuple):
    """All runs of one method."""

    method: str
    runs: Sequence[Measured]
    """One for each seed that finished."""
    failed: Sequence[int] = ()
    """Seeds whose run failed."""

    @property
    def score(self) -> float:
        """Mean over seeds."""
        score = self.mean("score")
        assert score is not None, f"no run of {self.method} has finished"
        return score

    def mean(self, field: str) -> float | None:
        """Mean of a field of :class:`Measured` over the seeds of which it is known."""
        known = [value for run in self.runs if (value := getattr(run, field)) is not None]
        return sum(known) / len(known) if known else None


class Goal(NamedTuple):
    """What runs are compared by."""

    metric: str
    """Name in metrics.json."""
    higher_is_better: bool

    @staticmethod
    def of(run: Path) -> Goal:
        """The score on the test split of what chose the checkpoints of a run.

        Raises:
            ValueError: Its config names none.
        """
        checkpoint = _config(run)["checkpoint"]
        if checkpoint["monitor"] is None:
            raise ValueError(f"{run}: no checkpoint.monitor, so there is no score to compare by")
        return Goal(checkpoint["monitor"].replace("val/", "test/", 1), checkpoint["mode"] == "max")


def measure(run: Path, metric: str) -> Measured:
    """Read what a run left.

    Args:
        run: Directory of a finished `mmlab fit`.
        metric: Name of the score in its metrics.json.

    Raises:
        ValueError: The run has no such score.
    """
    metrics = _json(run / "metrics.json")
    if metrics.get(metric) is None:
        raise ValueError(f"{run / 'metrics.json'} has no {metric}: it needs a test split")
    trained = _json(run / "trained.json")
    speed = _json(run / "speed.json")
    rate = speed.get("samples_per_second")
    return Measured(
        score=metrics[metric],
        low=metrics.get(f"{metric}_low"),
        high=metrics.get(f"{metric}_high"),
        trained=sum(part["trained"] for part in trained) if trained else None,
        total=sum(part["total"] for part in trained) if trained else None,
        peak_memory_gb=speed.get("peak_memory_gb"),
        step_seconds=_config(run)["data"]["batch_size"] / rate if rate else None,
        checkpoint_bytes=_checkpoint_bytes(run / CHECKPOINTS),
    )


def comparison_table(compared: Sequence[Compared], goal: Goal) -> str:
    """A Markdown table, and a sentence that names the best.

    Numbers are means over seeds; beside the score stand its lowest and highest, and the ends of its 95 %
    interval over test samples, each as a mean over seeds.
    """
    name = goal.metric.rpartition("/")[2]
    lines = [
        f"| method | trained parameters | peak memory | step | checkpoint | {goal.metric} | 95 % |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [f"| {' | '.join(_cells(one, name))} |" for one in compared]
    finished = [one for one in compared if one.runs]
    if finished:
        best = (max if goal.higher_is_better else min)(finished, key=lambda one: one.score)
        interval = _interval(best, name)
        within = f", 95 % interval {interval}" if interval else ""
        lines += ["", f"Best: {best.method}, {goal.metric} {format_value(name, best.score)}{within}."]
    return "\n".join(lines)


def checkpoint_ratio(compared: Sequence[Compared], method: str, other: str) -> float | None:
    """Size of the checkpoints of one method as a share of another's; None where one is not known."""
    sizes = {one.method: one.mean("checkpoint_bytes") for one in compared}
    size, whole = sizes.get(method), sizes.get(other)
    return None if size is None or whole is None else size / whole


def _cells(one: Compared, name: str) -> list[str]:
    failed = f"failed with seed {', '.join(map(str, one.failed))}" if one.failed else ""
    if not one.runs:
        return [one.method, "", "", "", "", failed, ""]
    trained, total = one.mean("trained"), one.mean("total")
    memory, seconds, size = (one.mean(f) for f in ("peak_memory_gb", "step_seconds", "checkpoint_bytes"))
    scores = [run.score for run in one.runs]
    spread = format_value(name, one.score)
    if len(scores) > 1:
        spread += f" ({format_value(name, min(scores))} to {format_value(name, max(scores))})"
    return [
        one.method,
        "" if trained is None or total is None else f"{trained:,.0f} ({100 * trained / total:.3g} %)",
        "" if memory is None else f"{memory:.2f} GB",
        "" if seconds is None else f"{1000 * seconds:.0f} ms",
        "" if size is None else f"{size / 1e6:.1f} MB",
        f"{spread}; {failed}" if failed else spread,
        _interval(one, name),
    ]


def _interval(one: Compared, name: str) -> str:
    low, high = one.mean("low"), one.mean("high")
    return "" if low is None or high is None else f"{format_value(name, low)} to {format_value(name, high)}"


def _checkpoint_bytes(folder: Path) -> int | None:
    """Size of the best checkpoint, or of the last where that is the only one."""
    found = sorted(path for path in folder.glob("[!.]*.ckpt") if path.name != "last.ckpt")
    chosen = found[-1] if found else folder / "last.ckpt"
    if chosen.is_dir():
        return sum(path.stat().st_size for path in chosen.rglob("*") if path.is_file())
    return chosen.stat().st_size if chosen.is_file() else None


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _config(run: Path) -> Mapping[str, Any]:
    found: Mapping[str, Any] = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    return found
