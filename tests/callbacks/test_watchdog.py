"""A run that hangs says where, and ends; one that is only slow does not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import lightning as L
import pytest
from lightning.pytorch.callbacks import Callback
from small_runs import Batches, make_task, make_trainer

from mmlab.callbacks import watchdog
from mmlab.callbacks.watchdog import HUNG, Watchdog
from mmlab.callbacks.whereabouts import Whereabouts
from mmlab.runs.rank_page import Page, read_pages

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*is already saved during checkpointing"),
]
PROGRAM = Path(__file__).with_name("hanging_runs.py")


LIMIT = 20
"""Ticks of the watch without a sign of life within a pass; elsewhere it is five times as much."""


class Ticks(threading.Event):
    """A clock that the test turns: so many ticks, and what happens at them."""

    def __init__(self, count: int, at: Callable[[int], None]) -> None:
        super().__init__()
        self.count = count
        self.at = at
        self.passed = 0

    def wait(self, timeout: float | None = None) -> bool:
        self.passed += 1
        self.at(self.passed)
        return self.passed > self.count


def reports(
    folder: Path, where: Whereabouts, *, ticks: int, at: Callable[[int], None] = lambda tick: None
) -> list[str]:
    """What the watch writes; it is not to end this process."""
    trainer = Mock(spec=L.Trainer, callbacks=[where], global_rank=0, world_size=2)
    trainer.strategy.launcher.procs = []
    trainer.datamodule = Mock()
    trainer.datamodule.samples_at = lambda split, step: [(f"{split}.tar", f"sample-{step}")]
    # A twentieth of the minutes is a tick.
    watch = watchdog._Watch(Watchdog(minutes=0.1, first=0.5), trainer, where, abort=False)
    watch.stop = Ticks(ticks, at)
    watch.run()
    return [path.read_text() for path in sorted(folder.glob("hangs/*-rank0.txt"))]


def whereabouts(folder: Path, *, slow: bool) -> Whereabouts:
    where = Whereabouts(folder)
    where.step, where.keys = 5, ("a", "b")
    where._sign("train", "is in batch 5 of `train`", slow=slow)
    return where


def test_what_hangs_is_written_down_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = whereabouts(tmp_path, slow=False)
    assert reports(tmp_path, where, ticks=LIMIT) == []
    (text,) = reports(tmp_path, where, ticks=10 * LIMIT)
    assert "rank 0 is in batch 5 of `train`, without a sign of life for 0:00:06" in text
    assert "phase train, step 5\nkeys of its last batch: a, b\n" in text
    assert "  train.tar: sample-5\n" in text
    assert "  train.tar: sample-6\n" in text
    said = capsys.readouterr().err
    assert said.count("mmlab: rank 0 is in batch 5") == 1
    assert "-rank0.txt" in said


def test_after_a_sign_of_life_it_can_hang_again(tmp_path: Path) -> None:
    where = whereabouts(tmp_path, slow=False)
    seen: list[int] = []

    def at(tick: int) -> None:
        seen.append(len(list(tmp_path.glob("hangs/*"))))
        if tick == 2 * LIMIT:
            for path in tmp_path.glob("hangs/*"):
                path.unlink()
            where._sign("train", "is in batch 6 of `train`", slow=False)

    (text,) = reports(tmp_path, where, ticks=4 * LIMIT, at=at)
    assert seen[2 * LIMIT - 1] == 1
    assert "batch 6" in text


def test_what_may_take_longer_may(tmp_path: Path) -> None:
    where = whereabouts(tmp_path, slow=True)
    assert reports(tmp_path, where, ticks=5 * LIMIT) == []
    assert len(reports(tmp_path, where, ticks=5 * LIMIT + 2)) == 1


def test_signs_of_life_are_no_hang(tmp_path: Path) -> None:
    """A validation of slow batches."""
    where = whereabouts(tmp_path, slow=False)

    def at(tick: int) -> None:
        if tick % (LIMIT - 1) == 0:
            where._sign("val", "is in a batch of `val`", slow=False)

    assert reports(tmp_path, where, ticks=20 * LIMIT, at=at) == []


def test_a_debugger_is_no_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not watchdog.debugged()
    monkeypatch.setitem(sys.modules, "pydevd", sys)
    assert reports(tmp_path, whereabouts(tmp_path, slow=False), ticks=10 * LIMIT) == []


def test_a_frame_of_pdb_is_a_debugger() -> None:
    found: list[bool] = []
    # A function of that file, as a breakpoint leaves it on the stack.
    code = compile("found.append(debugged())", "/usr/lib/python3.11/pdb.py", "exec")
    exec(code, {"found": found, "debugged": watchdog.debugged})
    assert found == [True]


def test_a_report_of_another_rank_calls_for_ones_own(tmp_path: Path) -> None:
    """It may have heard of life a little later, or be where more patience is due."""
    where = whereabouts(tmp_path, slow=False)
    (tmp_path / "hangs").mkdir()
    (tmp_path / "hangs" / "old-rank1.txt").touch()

    def at(tick: int) -> None:
        if tick == LIMIT // 2:
            (tmp_path / "hangs" / "new-rank1.txt").touch()

    assert reports(tmp_path, where, ticks=LIMIT // 2 - 2, at=at) == []
    assert len(reports(tmp_path, where, ticks=LIMIT // 2 + 3, at=at)) == 1


@pytest.mark.parametrize("setting", ["minutes", "first"])
def test_time_below_zero_is_refused(setting: str) -> None:
    with pytest.raises(ValueError, match=f"watchdog.{setting} is -1: it must be at least 0"):
        Watchdog(**{setting: -1.0})


class Pages(Callback):
    """Reads the pages when each batch of training begins."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pages: list[Page] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.pages += read_pages(self.folder)


def test_pages_name_the_batch_that_began(tmp_path: Path) -> None:
    seen = Pages(tmp_path)
    callbacks = [Whereabouts(tmp_path), Watchdog(minutes=5.0), seen]
    trainer = make_trainer(tmp_path, *callbacks, steps=4, limit_val_batches=1)
    trainer.fit(make_task("full"), Batches(per_epoch=2))
    assert [(page.step, page.phase, page.keys[0]) for page in seen.pages] == [
        (step, "train", f"{step}-0") for step in range(4)
    ]
    (last,) = read_pages(tmp_path)
    assert last.phase == "val"
    for thread in threading.enumerate():
        if thread.name == "watchdog":
            thread.join(20)
            assert not thread.is_alive(), "nobody is watched after training"


class Started:
    """A program that hangs, in a process group of its own."""

    def __init__(self, folder: Path, place: str, rank: int, devices: int) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
        environment |= {
            "MMLAB_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
        }  # fmt: skip
        self.folder = folder
        with (folder / "log").open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(PROGRAM), str(folder), place, str(rank), str(devices)],
                env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def wait_for(self, word: str) -> None:
        end = time.monotonic() + 200
        while word not in self.log:
            assert self.process.poll() is None, self.log
            assert time.monotonic() < end, self.log
            time.sleep(0.1)

    def alive(self) -> list[int]:
        """Processes of the group that have not ended."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, group = path.read_text().rpartition(")")[2].split()[:3]
            except OSError:
                continue
            if int(group) == self.process.pid and state != "Z":
                found.append(int(path.parent.name))
        return found

    def ends_within(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self.alive():
            assert time.monotonic() < end, f"{self.alive()} are left\n{self.log}"
            time.sleep(0.2)

    def kill(self) -> None:
        if self.alive():
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    started: list[Started] = []

    def begin(place: str, *, rank: int = 0, devices: int = 2) -> Started:
        started.append(Started(tmp_path, place, rank, devices))
        return started[0]

    yield begin
    for process in started:
        process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_when_one_rank_hangs_both_say_where_and_end(start: Any, tmp_path: Path, rank: int) -> None:
    run = start("step", rank=rank)
    assert run.process.wait(250) == HUNG, run.log
    run.ends_within(5)
    texts = {path.stem[-1]: path.read_text() for path in tmp_path.glob("hangs/*.txt")}
    assert texts.keys() == {"0", "1"}
    hung, waiting = texts[str(rank)], texts[str(1 - rank)]
    assert "it is in never_answers (" in hung
    assert "it waits in the collective " in waiting or "is in the backward pass, in which ranks" in waiting
    for page in read_pages(tmp_path):
        text = texts[str(page.rank)]
        assert f"phase train, step 3\nkeys of its last batch: {', '.join(page.keys)}\n" in text
        shard = next((tmp_path / "cache").rglob("train-000000.tar"))
        assert all(f"  {shard}: {key}\n" in text for key in page.keys)
        assert "without a sign of life" in (tmp_path / f"told-{page.rank}").read_text()
    assert "Traceback" not in run.log


@pytest.mark.slow
def test_a_loader_that_hangs_is_seen(start: Any, tmp_path: Path) -> None:
    run = start("loader", devices=1)
    assert run.process.wait(250) == HUNG, run.log
    run.ends_within(5)  # the worker too, which never answers
    (report,) = tmp_path.glob("hangs/*.txt")
    text = report.read_text()
    assert "of `train`, has no next one" in text
    assert "loader worker " in text
    assert "torch/utils/data/dataloader.py" in text
    assert "samples of this rank at the next step, 3:" in text


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_takes_the_other_along(start: Any, tmp_path: Path, rank: int) -> None:
    """The other one sleeps, far from any collective."""
    run = start("asleep", rank=1 - rank)
    run.wait_for("asleep")
    (page,) = (page for page in read_pages(tmp_path) if page.rank == rank)
    os.kill(page.pid, signal.SIGKILL)
    run.process.wait(25) if rank == 1 else None
    run.ends_within(25)


@pytest.mark.slow
def test_a_process_that_was_stopped_goes_on(start: Any, tmp_path: Path) -> None:
    run = start("validation", devices=1)
    end = time.monotonic() + 200
    while not any(page.phase == "val" for page in read_pages(tmp_path)):
        assert time.monotonic() < end, run.log
        time.sleep(0.1)
    os.killpg(run.process.pid, signal.SIGSTOP)
    time.sleep(5)
    os.killpg(run.process.pid, signal.SIGCONT)
    assert run.process.wait(100) == 0, run.log
    assert not list(tmp_path.glob("hangs/*"))
