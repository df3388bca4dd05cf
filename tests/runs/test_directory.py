from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from mmlab.runs.directory import SHARED_ID, _frozen_commit, describe_run, run_directory, run_id, write_json


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (SHARED_ID, "SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_NTASKS", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    # monkeypatch only restores what it has seen: run_id() writes this one.
    monkeypatch.setenv(SHARED_ID, "")
    monkeypatch.delenv(SHARED_ID)


def test_the_processes_of_a_run_share_its_id(tmp_path: Path) -> None:
    directory = run_directory(tmp_path, "stamps")
    assert directory.parent == tmp_path / "stamps"
    assert run_directory(tmp_path, "stamps") == directory
    assert os.environ[SHARED_ID] == directory.name


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"SLURM_JOB_ID": "47", "SLURM_STEP_ID": "3", "SLURM_NTASKS": "4"}, "job-47-3"),
        ({"TORCHELASTIC_RUN_ID": "mine"}, "torchrun-mine"),
        ({"TORCHELASTIC_RUN_ID": "none", "MASTER_PORT": "29500"}, f"torchrun-29500-{os.getppid()}"),
    ],
)
def test_ranks_that_a_launcher_starts_have_one_id(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert run_id() == expected


def test_two_runs_of_one_job_that_start_their_own_ranks_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "47")
    first = run_id()
    monkeypatch.delenv(SHARED_ID)
    assert run_id() != first


def test_two_runs_have_two_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run_directory(tmp_path, "stamps")
    monkeypatch.delenv(SHARED_ID)
    assert run_directory(tmp_path, "stamps") != first


@pytest.mark.parametrize("name", ["", "../up", "a/b", "-x", "."])
def test_a_name_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="it names a folder"):
        run_directory(tmp_path, name)


def test_a_run_says_what_ran(tmp_path: Path) -> None:
    describe_run(tmp_path / "run", "name: x\n", {"train": "abc"})
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (tmp_path / "run" / "config.yaml").read_text() == "name: x\n"
    assert record["data"] == {"train": "abc"}
    assert {"torch", "lightning", "mmlab"} <= set(record["packages"])
    assert record["command"]


def test_json_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": 2, "b": float("nan")})
    assert json.loads(path.read_text()) == {"a": 2, "b": None}
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


def test_a_frozen_copy_knows_its_commit(tmp_path: Path) -> None:
    file = tmp_path / "id" / "code" / "mmlab" / "runs" / "directory.py"
    assert _frozen_commit(file) is None
    file.parent.mkdir(parents=True)
    record = tmp_path / "id" / "submission.json"
    record.write_text(json.dumps({"code": []}))
    assert _frozen_commit(file) is None
    record.write_text(json.dumps({"code": [{"checkout": "/x", "commit": "abc", "dirty": True}]}))
    assert _frozen_commit(file) == "abc"
