"""The table of methods."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmlab.runs.comparison import Compared, Goal, Measured, checkpoint_ratio, comparison_table, measure


def make_run(
    folder: Path, metrics: dict[str, Any], *, size: int = 10, monitor: str | None = "val/mean_recall"
) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "epoch0.ckpt").write_bytes(b"x" * size)
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"x" * 1000)
    config = {"checkpoint": {"monitor": monitor, "mode": "max"}, "data": {"batch_size": 32}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "speed.json").write_text(json.dumps({"samples_per_second": 64.0, "peak_memory_gb": 1.5}))
    parts = [
        {"part": p, "method": "lora", "trained": t, "total": 100} for p, t in (("image", 3), ("text", 4))
    ]
    (folder / "trained.json").write_text(json.dumps(parts))
    return folder


METRICS = {"test/mean_recall": 0.5, "test/mean_recall_low": 0.4, "test/mean_recall_high": 0.6}


def test_a_run_is_measured_by_what_it_left(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", METRICS)
    goal = Goal.of(run)
    assert goal == Goal("test/mean_recall", True)
    assert measure(run, goal.metric) == Measured(0.5, 0.4, 0.6, 7, 200, 1.5, 0.5, 10)


def test_what_a_run_did_not_record_is_left_open(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {"test/mean_recall": 0.5})
    for name in ("speed.json", "trained.json", "checkpoints/epoch0.ckpt"):
        (run / name).unlink()
    assert measure(run, "test/mean_recall") == Measured(0.5, None, None, None, None, None, None, 1000)
    table = comparison_table(
        [Compared("frozen", [measure(run, "test/mean_recall")])], Goal("test/mean_recall", True)
    )
    assert "| frozen |  |  |  | 0.0 MB | 50.0 % |  |" in table


@pytest.mark.parametrize(
    ("metrics", "monitor", "message"),
    [({}, "val/mean_recall", "has no test/mean_recall"), (METRICS, None, "no checkpoint.monitor")],
)
def test_a_run_without_a_score_is_refused(
    tmp_path: Path, metrics: dict[str, float], monitor: str | None, message: str
) -> None:
    run = make_run(tmp_path / "run", metrics, monitor=monitor)
    with pytest.raises(ValueError, match=message):
        measure(run, Goal.of(run).metric)


def measured(score: float, size: int) -> Measured:
    return Measured(score, score - 0.1, score + 0.1, 5, 100, 1.0, 0.25, size)


def test_the_table_has_means_and_names_the_best() -> None:
    compared = [
        Compared("full", [measured(0.5, 4_000_000), measured(0.6, 4_000_000)]),
        Compared("lora", [measured(0.7, 100_000)], [2]),
        Compared("prompts", [], [1, 2]),
    ]
    lines = comparison_table(compared, Goal("test/mean_recall", True)).splitlines()
    assert lines[2] == (
        "| full | 5 (5 %) | 1.00 GB | 250 ms | 4.0 MB | 55.0 % (50.0 % to 60.0 %) | 45.0 % to 65.0 % |"
    )
    assert "70.0 %; failed with seed 2" in lines[3]
    assert lines[4] == "| prompts |  |  |  |  | failed with seed 1, 2 |  |"
    assert lines[-1] == "Best: lora, test/mean_recall 70.0 %, 95 % interval 60.0 % to 80.0 %."
    assert checkpoint_ratio(compared, "lora", "full") == pytest.approx(0.025)
    assert checkpoint_ratio(compared, "prompts", "full") is None


def test_the_best_may_be_the_lowest() -> None:
    compared = [Compared("a", [measured(0.5, 1)]), Compared("b", [measured(0.3, 1)])]
    assert "Best: b" in comparison_table(compared, Goal("test/loss", False))
