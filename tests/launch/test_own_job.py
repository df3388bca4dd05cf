"""What a run asks Slurm about its own job, with Slurm's real answers."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import pytest

from mmlab.launch.notice import Told
from mmlab.launch.own_job import OwnJob, Standing, kill_wait, read_standing

# As Slurm 22.05 answers, cut.
PREEMPTED = "JobId=1001 JobState=COMPLETING Reason=None Requeue=1 Restarts=1 BatchFlag=1 EndTime=Unknown"
CANCELLED = "JobId=1002 JobState=COMPLETING Reason=None Requeue=1 Restarts=0 EndTime=2026-11-30T02:38:52"
TIMEOUT = "JobId=1004 JobState=COMPLETING Reason=TimeLimit Requeue=1 Restarts=0 EndTime=2026-11-30T02:39:19"
# In a partition with PreemptMode=CANCEL; the second was preempted in an attempt before, and now cancelled.
ENDED = "JobId=1006 JobState=COMPLETING Reason=None Restarts=0 StartTime={start} PreemptTime={at}"
LOST = ENDED.format(start="2026-11-30T16:06:11", at="2026-11-30T16:06:15")
ONCE_LOST = ENDED.format(start="2026-11-30T16:06:26", at="2026-11-30T16:06:15")
RUNNING = "JobId=1005 JobState=RUNNING Reason=None Requeue=1 Restarts=0 EndTime={end}"


def later() -> str:
    """In 100 seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + 100))


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A command that answers what `show` holds, and writes down what else it is asked."""
    script = tmp_path / "scontrol"
    lines = [
        "#!/bin/sh", f"cd {tmp_path}", 'case "$1 $2" in', "'show -o') cat show-job;;",
        "'show config') cat show-config;;", '*) echo "$@" >> asked;;', "esac",
    ]  # fmt: skip
    script.write_text("\n".join(lines) + "\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


@pytest.mark.parametrize(
    ("answer", "asked", "said"),
    [
        (PREEMPTED, False, "Slurm requeues it"),
        (CANCELLED, False, "not requeued"),
        (LOST, True, "requeued after SIGUSR1"),
        (ONCE_LOST, False, "not requeued"),
        (TIMEOUT, True, "requeued after SIGUSR1"),
        (RUNNING.format(end=later()), True, "requeued after SIGUSR1"),
        (None, False, "scontrol requeue 1001"),
    ],
    ids=[
        "preempted",
        "cancelled",
        "preempted away",
        "cancelled later",
        "timeout",
        "running",
        "no answer",
    ],
)
def test_a_job_is_requeued_once_and_not_against_somebodys_will(
    scontrol: Path, answer: str | None, asked: bool, said: str
) -> None:
    if answer is not None:
        (scontrol / "show-job").write_text(answer + "\n")
    found = OwnJob("1001", restarts=0).requeue("after SIGUSR1", patience=0.0)
    assert said in found
    assert (scontrol / "asked").exists() is asked
    if asked:
        assert (scontrol / "asked").read_text() == "requeue 1001\n"


def test_a_controller_that_is_restarted_is_asked_again(
    scontrol: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threading.Timer(1.5, lambda: (scontrol / "show-job").write_text(TIMEOUT)).start()
    assert "requeued at last" in OwnJob("1001", restarts=0).requeue("at last", patience=30.0)
    begun = time.monotonic()
    (scontrol / "show-job").unlink()
    assert "does not answer" in OwnJob("1001", restarts=0).requeue("at last", patience=0.0)
    monkeypatch.setenv("PATH", str(scontrol / "empty"))  # as in a container: nobody waits for it
    assert "does not answer" in OwnJob("1001", restarts=0).requeue("at last", patience=600.0)
    assert time.monotonic() - begun < 60


def test_the_end_of_a_walltime_is_told_from_other_ends(scontrol: Path) -> None:
    for answer, out_of_time in (
        (TIMEOUT, True),
        (RUNNING.format(end=later()), True),
        (RUNNING.format(end="2100-01-01T00:00:00"), False),
        (PREEMPTED, False),
        (CANCELLED, False),
        (LOST, False),
    ):
        (scontrol / "show-job").write_text(answer)
        assert OwnJob("1001", restarts=0).out_of_time() is out_of_time, answer


def test_time_that_is_left(scontrol: Path) -> None:
    job, now = OwnJob("1001", restarts=0), time.time()
    (scontrol / "show-job").write_text(RUNNING.format(end=later()))
    assert job.seconds_left(Told(signal.SIGUSR1, now), kill_wait=30.0) == pytest.approx(100, abs=5)
    assert job.seconds_left(Told(signal.SIGTERM, now), kill_wait=30.0) == pytest.approx(130, abs=5)
    (scontrol / "show-job").write_text(PREEMPTED)
    assert job.seconds_left(Told(signal.SIGTERM, now - 2), kill_wait=5.0) == pytest.approx(3, abs=1)
    (scontrol / "show-job").write_text(TIMEOUT)  # long ago: the clock starts at the signal
    assert job.seconds_left(Told(signal.SIGTERM, now), kill_wait=5.0) == pytest.approx(5, abs=1)


def test_how_long_a_cluster_waits_to_kill(scontrol: Path) -> None:
    assert kill_wait() == 30.0
    (scontrol / "show-config").write_text("KeepAliveTime  = 3 sec\nKillWait                = 5 sec\n")
    assert kill_wait() == 5.0


def test_a_job_of_an_array_goes_by_its_place() -> None:
    environment = {"SLURM_JOB_ID": "1010", "SLURM_ARRAY_JOB_ID": "1007", "SLURM_ARRAY_TASK_ID": "3"}
    assert OwnJob.find(environment) == OwnJob("1007_3", 0)
    assert OwnJob.find({"SLURM_JOB_ID": "1010", "SLURM_RESTART_COUNT": "2"}) == OwnJob("1010", 2)
    assert OwnJob.find({}) is None


def test_an_answer_without_fields_is_read() -> None:
    assert read_standing({}) == Standing("", "", 0, None, preempted=False)
