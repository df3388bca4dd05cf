"""The list of my jobs, their logs, and what follows the end of a run."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from mmlab.launch.listing import chosen, list_jobs
from mmlab.launch.log import follow, of_rank
from mmlab.launch.slurm import Job
from mmlab.launch.submissions import Submission, note_submission, read_submissions
from mmlab.runs.status import Status, newest_status, read_status

NOW = 1_000_000.0


def job(identity: str, state: str, comment: str) -> Job:
    return Job(identity, state, "Priority", "0:01", "then", "name", comment)


def test_slurm_submissions_and_runs_are_put_together(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "a" / "id"
    run.mkdir(parents=True)
    (run / "status.json").write_text(json.dumps({"state": "running", "step": 5, "updated": NOW}))
    submissions = [
        Submission("7", "old", str(tmp_path / "old"), None, NOW - 200_000),
        Submission("8", "a", str(run), None, NOW - 100),
        Submission("9", "sweep", str(tmp_path / "s"), "0-1", NOW - 100),
    ]
    queue = [
        job("9_1", "PENDING", f"mmlab {tmp_path / 's'}"),
        job("10_2", "RUNNING", f"mmlab {tmp_path / 't'}"),
        job("11", "RUNNING", "of another program"),
    ]
    found = list_jobs(queue, submissions, now=NOW)
    assert [(one.id, one.state, one.active) for one in found] == [
        ("8", "gone", False), ("9_0", "gone", False), ("9_1", "PENDING", True), ("10_2", "RUNNING", True),
    ]  # fmt: skip
    assert found[0].status.step == 5
    assert found[2].reason == "Priority"
    assert [one.run.name for one in found] == ["id", "s-0", "s-1", "t-2"]
    assert [one.log for one in found] == [
        run / "slurm-8.log", tmp_path / "s" / "slurm-9_0.log", tmp_path / "s" / "slurm-9_1.log",
        tmp_path / "t" / "slurm-10_2.log",
    ]  # fmt: skip
    everything = list_jobs(queue, submissions, now=NOW, everything=True)
    assert everything[0].id == "7"
    assert [one.id for one in chosen(everything, "9")] == ["9_0", "9_1"]
    assert [one.id for one in chosen(everything, "9_1")] == ["9_1"]
    with pytest.raises(ValueError, match="no job 99 of mmlab is known here"):
        chosen(everything, "99")


def test_the_list_of_submissions_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "list"
    assert read_submissions(path) == []
    kept = [Submission("1", "a", "/a", None, 1.5), Submission("2", "b", "/b", "0-3%2", 2.5)]
    note_submission(path, kept[0])
    with path.open("a") as file:
        file.write("half a li\n[]\n{}\n")
    note_submission(path, kept[1])
    assert read_submissions(path) == kept


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"step": "5", "state": 3, "eta_seconds": true}'])
def test_a_status_that_cannot_be_read_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "status.json").write_text(text)
    assert read_status(tmp_path) == Status()


def test_the_newest_run_of_a_name(tmp_path: Path) -> None:
    assert newest_status(tmp_path) == Status()
    for number in (2, 1):
        (tmp_path / f"run{number}").mkdir()
        content = {"updated": number, "save_seconds": 10 * number}
        (tmp_path / f"run{number}" / "status.json").write_text(json.dumps(content))
    assert newest_status(tmp_path).save_seconds == 20.0


@pytest.mark.parametrize(
    ("line", "rank", "said"),
    [
        ("3: hello\n", 3, "hello\n"), (" 3: a: b\n", 3, "a: b\n"), ("3: hello\n", None, "3: hello\n"),
        ("3: hello\n", 2, None), ("13: x\n", 3, None), ("03: x\n", 3, "x\n"), ("srun: error\n", 0, None),
        ("0: \n", 0, "\n"),
    ],
)  # fmt: skip
def test_lines_of_a_rank(line: str, rank: int | None, said: str | None) -> None:
    assert of_rank(line, rank) == said


def test_a_log_is_followed_until_its_job_ends(tmp_path: Path) -> None:
    path, over = tmp_path / "log", threading.Event()

    def write() -> None:
        for part in ("a\nb", "c\n", "last"):
            time.sleep(0.05)
            with path.open("a") as file:
                file.write(part)
        over.set()

    writer = threading.Thread(target=write)
    writer.start()
    assert list(follow(path, lambda: not over.is_set(), pause=0.01)) == ["a\n", "bc\n", "last\n"]
    writer.join()
