"""A job that failed begins again, but not for ever, and not where it would be no better."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mmlab.launch import ending, slurm
from mmlab.launch.ending import ended
from mmlab.runs.attempts import Failure, note_failure, past_failures
from mmlab.runs.rank_page import RankPage
from mmlab.runs.status import Status, read_status, write_status


@pytest.fixture
def requeued(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What Slurm was asked to do; it says that the job runs."""
    asked: list[tuple[str, ...]] = []

    def call(*words: str, seconds: float) -> str:
        if words[1] == "show":
            return "JobState=RUNNING Reason=None Restarts=0"
        asked.append(words)
        return ""

    monkeypatch.setattr(slurm, "call", call)
    monkeypatch.setenv("SLURM_JOB_ID", "1001")
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    return asked


REQUEUE = ("scontrol", "requeue", "1001")


def test_a_run_that_is_through_or_was_told_to_stop_is_left_alone(
    tmp_path: Path, requeued: list[tuple[str, ...]]
) -> None:
    write_status(tmp_path, Status("finished"))
    assert ended(tmp_path, 0, requeues=3) == 0
    assert ended(tmp_path, 143, requeues=3) == 143  # of an attempt before, it says
    assert len(past_failures(tmp_path)) == 1
    write_status(tmp_path, Status("finished", job="1001", restarts=0))
    assert ended(tmp_path, 143, requeues=3) == 0  # told to stop when all was done
    requeued.clear()
    # The run has requeued its job, unless Slurm did not answer: it still runs here, so it had not.
    write_status(tmp_path, Status("preempted", job="1001", restarts=0))
    assert ended(tmp_path, 143, requeues=3) == 143
    assert requeued == [REQUEUE]
    assert len(past_failures(tmp_path)) == 1


def test_what_an_attempt_before_has_said_does_not_count(
    tmp_path: Path, requeued: list[tuple[str, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    """The job was preempted, and now fails before it says anything."""
    RankPage(tmp_path, 0).note(step=500, phase="train", keys=["a"])
    write_status(tmp_path, Status("preempted", job="1001", restarts=3))
    assert ended(tmp_path, 1, requeues=3) == 1
    assert requeued == [REQUEUE]
    assert "ended with status 1, before it began, at step 0" in capsys.readouterr().err


def test_a_killed_run_begins_again_as_often_as_is_allowed(
    tmp_path: Path, requeued: list[tuple[str, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    write_status(tmp_path, Status("running", step=3, job="1001", restarts=0))
    page = RankPage(tmp_path, 1)
    for attempt in range(3):
        page.note(step=10 + attempt, phase="train", keys=["a", "b"])
        assert ended(tmp_path, 137, requeues=2) == 137
    assert requeued == [REQUEUE, REQUEUE]
    assert [failure.step for failure in past_failures(tmp_path)] == [10, 11, 12]
    assert past_failures(tmp_path)[0] == Failure(
        "a rank was killed", 10, "a, b", 1, time=past_failures(tmp_path)[0].time
    )
    status = read_status(tmp_path)
    assert status is not None
    assert status.state == "failed"
    assert (status.reason or "").startswith("not begun again: 3 failures, and --requeues is 2")
    assert "requeued for attempt 2 of 3" in capsys.readouterr().err


def test_kills_in_two_validations_are_not_the_same(tmp_path: Path, requeued: list[tuple[str, ...]]) -> None:
    """Every validation has a first batch."""
    page = RankPage(tmp_path, 0)
    for trained in (40, 80, 80):
        write_status(tmp_path, Status("running", step=trained, job="1001", restarts=0))
        page.note(0, "val", ["a"], trained=trained)
        assert ended(tmp_path, 137, requeues=9) == 137
    assert requeued == [REQUEUE, REQUEUE]
    assert [(one.what, one.step) for one in past_failures(tmp_path)] == [
        ("a rank was killed in batch 0 of val", step) for step in (40, 80, 80)
    ]


def test_the_same_failure_at_the_same_step_twice_is_the_last(
    tmp_path: Path, requeued: list[tuple[str, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        note_failure(tmp_path, Failure("RuntimeError: bad", 7, "key1, key2", rank=1))
        note_failure(tmp_path, Failure("RuntimeError: the other rank is gone", 7, "key3", rank=0))
        assert ended(tmp_path, 1, requeues=9) == 1
    assert requeued == [REQUEUE]
    said = capsys.readouterr().err
    assert "twice the same at step 7: RuntimeError: bad; its samples: key1, key2" in said
    for one, other in (
        ("DataLoader worker (pid 4711) is killed", "DataLoader worker (pid 815) is killed"),
        ("tried to allocate 2.50 GiB. Process 4711 has", "tried to allocate 20.00 MiB. Process 815 has"),
        ("Connection closed by peer [127.0.0.1]:11164", "Connection closed by peer [127.0.0.1]:8013"),
    ):
        assert Failure(one, 7).like(Failure(other, 7)), "what differs by chance does not count"
        assert not Failure(one, 7).like(Failure(other, 8))
    assert not Failure("KeyError: 'k17'", 7).like(Failure("KeyError: 'k18'", 7))
    # Another step, or another reason, is another failure.
    note_failure(tmp_path, Failure("RuntimeError: bad", 8, "key4"))
    ended(tmp_path, 1, requeues=9)
    assert requeued == [REQUEUE, REQUEUE]


def test_a_rank_that_lost_another_does_not_hide_why(
    tmp_path: Path, requeued: list[tuple[str, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    RankPage(tmp_path, 1).note(step=9, phase="train", keys=["a"])
    write_status(tmp_path, Status("running", job="1001", restarts=0))
    note_failure(tmp_path, Failure("RuntimeError: Connection reset", 9, follows=True))
    ended(tmp_path, 137, requeues=3)
    assert "a rank was killed, at step 9 (status 137)" in capsys.readouterr().err
    note_failure(tmp_path, Failure("RuntimeError: Connection reset", 9, follows=True))
    note_failure(tmp_path, Failure("KeyError: x", 9, rank=1))
    ended(tmp_path, 1, requeues=3)
    assert "KeyError: x, at step 9" in capsys.readouterr().err
    assert requeued == [REQUEUE, REQUEUE]


@pytest.mark.parametrize("status", [2, 130, 137])
def test_what_would_be_no_better_is_not_begun_again(
    tmp_path: Path, requeued: list[tuple[str, ...]], status: int
) -> None:
    if status == 137:  # of another rank, which was killed because of the first
        note_failure(tmp_path, Failure("ValueError: no such field", 0, hopeless=True))
    assert ended(tmp_path, status, requeues=3) == status
    assert requeued == []


def test_on_a_full_disk_it_begins_again_as_often(
    tmp_path: Path, requeued: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def full(run: Path, failure: Failure) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(run / "failures.jsonl"))

    monkeypatch.setattr(ending, "keep_failure", full)
    for restarts in range(3):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
        assert ended(tmp_path, 137, requeues=2) == 137
    assert requeued == [REQUEUE, REQUEUE]
    said = capsys.readouterr().err
    assert f"not written: [Errno 28] No space left on device: '{tmp_path / 'failures.jsonl'}'" in said
    assert "not begun again: 3 failures, and --requeues is 2" in said


def test_lines_that_were_cut_off_do_not_count(tmp_path: Path, requeued: list[tuple[str, ...]]) -> None:
    """A full disk ends a line early, and a lost node leaves empty files."""
    (tmp_path / "failures.jsonl").write_text('{"what": "ValueError: x", "st')
    (tmp_path / "ranks").mkdir()
    (tmp_path / "ranks" / "rank0.failure.json").write_text("")
    for number in range(2):
        assert ended(tmp_path, 137, requeues=2) == 137
        assert len(past_failures(tmp_path)) == number + 1
    assert requeued == [REQUEUE]  # the second is the same at the same step


def test_outside_a_job_nothing_is_requeued(
    tmp_path: Path, requeued: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID")
    assert ended(tmp_path, 1, requeues=3) == 1
    assert requeued == []
