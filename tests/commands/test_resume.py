"""Which run goes on, and from where."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mmlab.commands import resume
from mmlab.commands.resume import default_resume, find_run, find_start
from mmlab.runs.status import Status, read_status, write_status


@pytest.fixture(autouse=True)
def _no_scheduler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in list(os.environ):
        if name.startswith(("SLURM_", "TORCHELASTIC", "MMLAB_RUN_ID", resume.SHARED_START)):
            monkeypatch.delenv(name)
    yield
    for name in (resume.SHARED_ID, resume.SHARED_START):  # set by what is tested
        os.environ.pop(name, None)


def checkpoint(run: Path, name: str, step: int) -> Path:
    path = run / "checkpoints" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": {}, "optimizer_states": [], "global_step": step}, path)
    return path


def test_the_newest_run_of_the_name_that_has_not_ended_goes_on(tmp_path: Path) -> None:
    for number, state in enumerate(["finished", "preempted"]):
        run = tmp_path / "name" / f"run{number}"
        checkpoint(run, "last.ckpt", 3)
        write_status(run, Status(state))
        os.utime(run, (number, number))
    (tmp_path / "name" / "only-tested").mkdir()
    write_status(tmp_path / "name" / "only-tested", Status("finished"))
    assert find_run(tmp_path, "name", "auto").name == "run1"
    os.environ.pop(resume.SHARED_ID)
    assert find_run(tmp_path, "name", "never").name not in ("run0", "run1")


def test_a_run_that_has_ended_does_not_go_on(tmp_path: Path) -> None:
    run = tmp_path / "name" / "run0"
    checkpoint(run, "last.ckpt", 3)
    write_status(run, Status("finished"))
    assert find_run(tmp_path, "name", "auto") != run


def test_a_run_that_is_under_way_elsewhere_is_left_alone(tmp_path: Path) -> None:
    run = tmp_path / "name" / "run0"
    checkpoint(run, "last.ckpt", 3)
    write_status(run, Status("running", job="1001", process="elsewhere:1"))
    with pytest.raises(ValueError, match=r"under way.* of job 1001: wait for it, or set --resume never"):
        find_run(tmp_path, "name", "auto")


def test_a_run_whose_process_was_killed_goes_on_at_once(tmp_path: Path) -> None:
    run = tmp_path / "name" / "run0"
    checkpoint(run, "last.ckpt", 3)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    write_status(run, Status("running", process=f"{socket.gethostname()}:{dead.pid}"))
    assert find_run(tmp_path, "name", "auto") == run
    # In a container that begins again, ours is the number that the dead process had.
    write_status(run, Status("running", process=f"{socket.gethostname()}:{os.getpid()}"))
    assert find_run(tmp_path, "name", "auto") == run
    os.environ.pop(resume.SHARED_ID)
    write_status(run, Status("running", process=f"{socket.gethostname()}:{os.getppid()}"))
    with pytest.raises(ValueError, match="under way"):
        find_run(tmp_path, "name", "auto")


def test_the_same_job_goes_on_whatever_it_said_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"JOB_ID": "7", "STEP_ID": "0", "NTASKS": "2", "RESTART_COUNT": "1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    run = tmp_path / "name" / "job-7-0"
    newest = checkpoint(run, "last.ckpt", 3)
    write_status(run, Status("running", job="7", process="node2:1"))
    assert default_resume() == "auto"
    assert find_run(tmp_path, "name", "auto") == run
    assert find_start(run) == newest
    # Another rank reads what the first has chosen; a note of an attempt before does not count.
    monkeypatch.setattr(resume.rank_zero_only, "rank", 1)
    note = run / "ranks" / "start-7-0-1.json"
    assert json.loads(note.read_text()) == {"from": str(newest)}
    assert find_start(run) == newest
    note.rename(note.with_name("start-7-0-0.json"))
    monkeypatch.setattr(resume, "PATIENCE", 0.2)
    with pytest.raises(ValueError, match="rank 0 has not said"):
        find_start(run)


def test_by_default_only_a_scheduler_resumes() -> None:
    assert default_resume() == "never"


def test_nothing_is_begun_anew_where_all_checkpoints_are_damaged(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, "last.ckpt", 3)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"no checkpoint in .* is whole.*--resume never"):
        find_start(tmp_path)


def test_a_status_of_another_kind_is_none(tmp_path: Path) -> None:
    assert read_status(tmp_path) == Status()
    (tmp_path / "status.json").write_text(
        '{"state": 3, "step": "x", "eta_seconds": true, "steps": 4, "new": 1}'
    )
    assert read_status(tmp_path) == Status(steps=4)
    write_status(tmp_path, Status("running", step=3))
    found = read_status(tmp_path)
    assert found.updated is not None
    assert abs(found.updated - time.time()) < 5
    assert found._replace(updated=None) == Status("running", step=3)
