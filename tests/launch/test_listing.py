"""The list of my jobs, their logs, and what follows the end of a run."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from mmlab.launch import listing
from mmlab.launch import submissions as submissions_module
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


def test_an_id_that_comes_round_again_does_not_hide_a_job(tmp_path: Path) -> None:
    old, new = (Submission("8", name, str(tmp_path / name), None, NOW - 50) for name in ("old", "new"))
    for submissions in ([old, new], [new, old]):
        found = list_jobs([job("8", "RUNNING", f"mmlab {tmp_path / 'new'}")], submissions, now=NOW)
        assert [(one.run.name, one.state) for one in found] == [("old", "gone"), ("new", "RUNNING")]
        assert [one.run.name for one in chosen(found, "8")] == ["new"]
    # A job of a run that is on no list.
    found = list_jobs([job("8", "RUNNING", f"mmlab {tmp_path / 'third'}")], [old], now=NOW)
    assert [(one.run.name, one.active) for one in found] == [("old", False), ("third", True)]


def test_a_job_without_a_comment_is_that_of_the_newest_submission(tmp_path: Path) -> None:
    submissions = [
        Submission("8", "name", str(tmp_path / run), None, when)
        for run, when in (("b", NOW - 9), ("a", NOW - 99))
    ]
    found = list_jobs([job("8", "RUNNING", "(null)")], submissions, now=NOW)
    assert [(one.run.name, one.active) for one in found] == [("a", False), ("b", True)]
    other = job("8", "RUNNING", "of another program")
    assert not any(one.active for one in list_jobs([other], submissions, now=NOW))


def test_the_status_of_what_is_old_is_read_only_where_it_matters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def noting(run: Path) -> Status:
        read.append(run.name)
        return Status()

    monkeypatch.setattr(listing, "read_status", noting)
    submissions = [
        Submission(str(n), "a", str(tmp_path / f"r{n}"), None, NOW - 40 * 86_400) for n in range(3)
    ]
    queue = [job("1", "RUNNING", f"mmlab {tmp_path / 'r1'}")]
    assert [one.id for one in list_jobs(queue, submissions, now=NOW)] == ["1"]
    assert read == ["r1"]
    assert len(list_jobs(queue, submissions, now=NOW, everything=True)) == 3


def test_lines_of_folders_that_are_gone_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submissions_module, "EVERY", 3)
    path, there = tmp_path / "list", tmp_path / "runs" / "a" / "there"
    there.mkdir(parents=True)
    kept = Submission("1", "a", str(there), None, 1.0)
    away = Submission("3", "a", str(tmp_path / "not" / "mounted" / "x"), None, 1.0)
    note_submission(path, kept)
    note_submission(path, Submission("2", "a", str(there.with_name("gone")), None, 1.0))
    note_submission(path, away)
    assert len(read_submissions(path)) == 3
    last = Submission("4", "a", str(there), None, 2.0)
    note_submission(path, last)
    assert read_submissions(path) == [kept, away, last]


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
