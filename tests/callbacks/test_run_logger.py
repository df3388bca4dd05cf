"""One W&B run and one table, however often the run begins again; no step twice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import wandb
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmlab.callbacks.history import History
from mmlab.callbacks.run_logger import RunLogger
from mmlab.commands.resume import Start, continue_logs


class Service:
    """Takes the place of W&B: a run with an id, rows, and what else it was told."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[str, Any]] = {}
        self.ids: list[str] = []
        self.preempted: list[bool] = []
        self.status: list[int] = []

    def init(self, **settings: Any) -> Service:
        self.id = settings["id"] or f"new{len(self.ids)}"
        self.ids.append(self.id)
        return self

    def define_metric(self, *arguments: Any, **named: Any) -> None:
        """Nothing."""

    def log(self, row: dict[str, Any], step: int) -> None:
        # W&B drops a step that is not above the last.
        assert step > max(self.rows, default=-1), (step, self.rows)
        self.rows[step] = row

    def mark_preempting(self) -> None:
        self.preempted.append(True)

    def finish(self, exit_code: int) -> None:
        self.status.append(exit_code)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    found = Service()
    monkeypatch.setattr(wandb, "init", found.init)
    monkeypatch.setattr(wandb, "run", None)
    return found


def loggers(folder: Path, *, live: bool) -> tuple[RunLogger, History]:
    return RunLogger(str(folder), name="name", live=live), History(str(folder / "logs"))


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)
@given(ends=st.lists(st.tuples(st.integers(1, 30), st.integers(0, 6)), max_size=5))
def test_every_step_is_logged_once_whenever_the_run_is_killed(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    ends: list[tuple[int, int]],
) -> None:
    """Attempts end some steps after the last checkpoint, which is made every fifth step."""
    folder, service = tmp_path_factory.mktemp("run"), Service()
    monkeypatch.setattr(wandb, "init", service.init)
    monkeypatch.setattr(wandb, "run", None)
    start = 0
    for end, unsent in [*ends, (40, 0)]:
        run, history = loggers(folder, live=False)
        continue_logs([run, history], Start(start))
        saved = start
        for step in range(start, max(end, start)):
            for name in ("train/loss", "val/loss") if step % 5 == 4 else ("train/loss",):
                run.log_metrics({name: step / 2}, step=step)
                history.log_metrics({name: step / 2}, step=step)
            if (step + 1) % 5 == 0:
                saved = step + 1
                if step < end - unsent:  # else the process dies before it has handed on what was saved
                    run.send(saved)
        start = saved
        if end == 40:
            run.finalize("success")
    expected = []
    for step in range(40):
        expected.append((step, "train/loss"))
        if step % 5 == 4:
            expected.append((step, "val/loss"))
    sent = [(row["trainer/global_step"], next(iter(row))) for _, row in sorted(service.rows.items())]
    assert sent == expected
    assert sorted(service.rows) == list(range(len(expected)))
    assert len(set(service.ids)) == 1
    rows = [
        (int(row["step"]), "train/loss" if row["train/loss"] else "val/loss")
        for row in history.rows_as_text()
    ]
    assert rows == expected


def test_a_validation_that_comes_again_is_there_once(tmp_path: Path, service: Service) -> None:
    """The run dies before a checkpoint holds what it gave, and goes on from one that was made before it."""
    attempts = {
        Start(0): [("train/loss", 0), ("train/loss", 1), ("val/loss", 1)],
        Start(2, validated=False): [("val/loss", 1), ("train/loss", 2)],
    }
    for start, rows in attempts.items():
        run, history = loggers(tmp_path, live=False)
        continue_logs([run, history], start)
        for name, step in rows:
            run.log_metrics({name: 1.0}, step=step)
            history.log_metrics({name: 1.0}, step=step)
            run.send(2)
    run.finalize("success")
    expected = [("train/loss", 0), ("train/loss", 1), ("val/loss", 1), ("train/loss", 2)]
    sent = [(next(iter(row)), row["trainer/global_step"]) for _, row in sorted(service.rows.items())]
    assert sent == expected
    kept = [
        ("train/loss" if row["train/loss"] else "val/loss", int(row["step"]))
        for row in history.rows_as_text()
    ]
    assert kept == expected


def test_a_live_logger_sends_at_once(tmp_path: Path, service: Service) -> None:
    run, _ = loggers(tmp_path, live=True)
    run.log_metrics({"train/loss": 1.0}, step=0)
    assert service.rows == {0: {"train/loss": 1.0, "trainer/global_step": 0}}


def test_a_run_that_stops_is_told_to_be_preempted(tmp_path: Path, service: Service) -> None:
    run, _ = loggers(tmp_path, live=False)
    run.log_metrics({"train/loss": 1.0}, step=0)
    run.log_metrics({"train/loss": 2.0}, step=1)
    run.send(1)
    run.preempted()
    assert (service.preempted, service.status) == ([True], [1])
    assert list(service.rows) == [0]


def test_a_line_that_was_half_written_is_left_out(tmp_path: Path) -> None:
    history = History(str(tmp_path))
    history.log_metrics({"a": 1.0, "b": 2.0}, step=0)
    history.log_metrics({"a": 1.5, "b": 2.5}, step=1)
    text = history.path.read_text()
    history.path.write_text(text[: text.rindex(",")])
    again = History(str(tmp_path))
    assert [row.step for row in again.go_on(5)] == [0]
    again.log_metrics({"a": 3.0, "c": 1.0}, step=1)
    assert again.rows_as_text() == [
        {"a": "1.0", "b": "2.0", "c": "", "step": "0"}, {"a": "3.0", "b": "", "c": "1.0", "step": "1"},
    ]  # fmt: skip


def test_the_service_of_another_process_is_not_used(tmp_path: Path) -> None:
    """Its variable goes to jobs that are submitted, and then means a socket of another machine."""
    program = (
        "import sys\nfrom mmlab.callbacks.run_logger import RunLogger\n"
        "logger = RunLogger(sys.argv[1], name='one')\n"
        "logger.log_metrics({'loss': 1.0}, step=0)\nlogger.finalize('success')\n"
    )
    gone = {"WANDB_SERVICE": f"3-1-unix-{tmp_path}/gone", "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], env=os.environ | gone, capture_output=True, text=True,
        check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "wandb" / "sent").read_text() == "1"
