"""`mmlab jobs` where Slurm has forgotten a job, and what its table shows."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from mmlab.cli import main
from mmlab.commands import jobs
from mmlab.launch import slurm
from mmlab.launch.slurm import Job
from mmlab.launch.submissions import Submission, note_submission


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an array of two that was submitted, of which the second task runs."""
    monkeypatch.setenv("MMLAB_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "runs" / "sweep" / "id"
    running = folder.with_name("id-1")
    for one in (folder, folder.with_name("id-0"), running):
        one.mkdir(parents=True)
    (folder / "job.sh").write_text("#!/bin/bash\n")
    (folder / "slurm-9_0.log").write_text("0: zero\n1: one\nsrun: done\n")
    now = time.time()
    (running / "status.json").write_text(
        json.dumps(
            {
                "state": "running", "step": 120, "steps": 400, "samples_per_second": 51.26,
                "eta_seconds": 5400.0, "saved_at": now - 300, "restarts": 2, "updated": now,
            }
        )
    )  # fmt: skip
    submission = Submission("9", "sweep", str(folder), "0-1", now - 1000)
    note_submission(tmp_path / "cache" / "submissions.jsonl", submission)
    queue = [Job("9_1", "RUNNING", "None", "1:00", "then", "sweep", f"mmlab {folder}")]
    monkeypatch.setattr(slurm, "queue", lambda: queue)
    return folder


@pytest.mark.usefixtures("sweep")
def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["jobs"]) == 0
    head, forgotten, running = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["id", "name", "state"]
    assert forgotten.split()[:3] == ["9_0", "sweep", "gone"]
    words = ["9_1", "sweep", "RUNNING", "120/400", "51.26", "90", "min", "5", "min", "ago", "2"]
    assert running.split()[:11] == words
    assert running.endswith("/runs/sweep/id-1")


@pytest.mark.usefixtures("sweep")
def test_json_for_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["jobs", "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["id"] for record in records] == ["9_0", "9_1"]
    assert records[1]["step"] == 120


@pytest.mark.usefixtures("sweep")
def test_logs_of_all_and_of_a_rank(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["jobs", "logs", "9_0"]) == 0
    assert capsys.readouterr().out == "0: zero\n1: one\nsrun: done\n"
    assert main(["jobs", "logs", "9_0", "-f", "--rank", "1"]) == 0  # it has ended: -f does not wait
    assert capsys.readouterr().out == "one\n"
    assert main(["jobs", "logs", "9_1"]) == 0
    assert "nothing yet: the job is RUNNING" in capsys.readouterr().err


@pytest.mark.usefixtures("sweep")
def test_logs_are_shown_where_slurm_does_not_answer(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([slurm.queue(), None, []])

    def queue() -> list[Job]:
        found = next(answers, None)
        if found is None:
            raise slurm.SlurmError("squeue: Unable to contact slurm controller")
        return found

    monkeypatch.setattr(slurm, "queue", queue)
    monkeypatch.setattr(jobs, "follow", lambda path, going_on: [f"{going_on()}\n", f"{going_on()}\n"])
    assert main(["jobs", "logs", "9_1", "-f"]) == 0
    assert capsys.readouterr().out == "True\nFalse\n"
    monkeypatch.undo()


@pytest.mark.usefixtures("sweep")
def test_logs_on_disk_need_no_slurm(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def queue() -> list[Job]:
        raise slurm.SlurmError("squeue: Unable to contact slurm controller")

    monkeypatch.setattr(slurm, "queue", queue)
    assert main(["jobs", "logs", "9_0"]) == 0
    said = capsys.readouterr()
    assert said.out == "0: zero\n1: one\nsrun: done\n"
    assert "Unable to contact" in said.err
    assert main(["jobs", "logs", "8"]) == 2


def test_what_slurm_has_forgotten_is_submitted_again(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called: list[tuple[object, ...]] = []

    def submit(*words: object, directory: Path | None) -> str:
        called.append(words)
        return "55"

    monkeypatch.setattr(slurm, "submit", submit)
    assert main(["jobs", "requeue", "9_0"]) == 0
    assert called == [(sweep / "job.sh", "--array=0")]
    assert capsys.readouterr().out == "job 9_0 is queued again as 55_0\n"
    assert main(["jobs", "--json"]) == 0
    runs = {record["id"]: record["run"] for record in map(json.loads, capsys.readouterr().out.splitlines())}
    assert runs["55_0"] == runs["9_0"]


def test_forgotten_tasks_are_submitted_in_one_call_and_only_where_they_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MMLAB_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "runs" / "big" / "id"
    folder.mkdir(parents=True)
    (folder / "job.sh").write_text("#!/bin/bash\n")
    for task, state in enumerate(["finished", "failed", "failed", "preempted", "running"]):
        run = folder.with_name(f"id-{task}")
        run.mkdir()
        (run / "status.json").write_text(json.dumps({"state": state}))
    submission = Submission("7", "big", str(folder), "0-4%2", time.time() - 1000)
    note_submission(tmp_path / "cache" / "submissions.jsonl", submission)
    # Task 2 has been submitted again.
    queue = [Job("8_2", "RUNNING", "None", "1:00", "then", "big", f"mmlab {folder}")]
    monkeypatch.setattr(slurm, "queue", lambda: queue)
    called: list[tuple[object, ...]] = []

    def submit(*words: object, directory: Path | None) -> str:
        called.append(words)
        return "55"

    monkeypatch.setattr(slurm, "submit", submit)
    assert main(["jobs", "requeue", "7"]) == 0
    assert called == [(folder / "job.sh", "--array=1,3,4%2")]
    said = capsys.readouterr()
    assert said.out.splitlines() == [f"job 7_{n} is queued again as 55_{n}" for n in (1, 3, 4)]
    assert f"job 7_0 is not queued again: {folder}-0 is finished" in said.err
    assert f"job 7_2 is not queued again: job 8_2 trains in {folder}-2" in said.err
    assert main(["jobs", "requeue", "7_0", "7_2"]) == 2
    assert len(called) == 1


def test_of_an_id_that_came_round_again_the_job_in_the_queue_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MMLAB_CACHE", str(tmp_path / "cache"))
    for name in ("new", "old"):
        submission = Submission("7", name, str(tmp_path / name), None, time.time() - 1000)
        note_submission(tmp_path / "cache" / "submissions.jsonl", submission)
    queue = [Job("7", "RUNNING", "None", "1:00", "then", "new", f"mmlab {tmp_path / 'new'}")]
    monkeypatch.setattr(slurm, "queue", lambda: queue)
    assert main(["jobs", "logs", "7"]) == 0
    assert str(tmp_path / "new" / "slurm-7.log") in capsys.readouterr().err


def test_cancel_and_requeue_talk_to_slurm(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called: list[tuple[str, ...]] = []
    monkeypatch.setattr(slurm, "call", lambda *words: called.append(words))
    assert main(["jobs", "cancel", "9_0", "9"]) == 0
    assert main(["jobs", "requeue", "9_1"]) == 0
    assert called == [("scancel", "9"), ("scontrol", "requeue", "9_1")]
    assert capsys.readouterr().out.startswith("job 9_0 has ended already\njob 9 is cancelled\n")
    assert main(["jobs", "cancel", "77"]) == 2
    assert "no job 77 of mmlab is known here" in capsys.readouterr().err
