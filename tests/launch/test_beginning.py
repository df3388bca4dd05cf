"""A rank that fails before its run has begun leaves word of it; `srun` would only tell of the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmlab.launch.beginning import RUN, failures_noted
from mmlab.launch.ending import ended
from mmlab.runs.attempts import Failure, noted_failure, past_failures
from mmlab.runs.status import Status, read_status, write_status


def fail(run: Path, error: Exception, *, rank: int = 0, restarts: int = 0, job: str | None = "7") -> None:
    """End a rank of a job with an error."""
    environment = {RUN: str(run), "SLURM_PROCID": str(rank), "SLURM_RESTART_COUNT": str(restarts)}
    environment |= {} if job is None else {"SLURM_JOB_ID": job}
    with (
        pytest.raises(type(error)),
        failures_noted(lambda error: isinstance(error, ValueError), environment),
    ):
        raise error


def test_bad_input_of_several_ranks_is_known_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    fail(tmp_path, ValueError("no such key\n(did you mean ...)"), rank=1)
    # One has ended with 2; the others have been ended, and theirs is greater.
    assert ended(tmp_path, 143, requeues=3) == 143
    said = capsys.readouterr().err
    assert "ValueError: no such key, at step 0" in said
    assert "not begun again: it would be no better" in said
    assert read_status(tmp_path).state == "failed"
    assert [failure.rank for failure in past_failures(tmp_path)] == [1]


def test_what_may_go_well_on_another_node_is_not_hopeless(tmp_path: Path) -> None:
    fail(tmp_path, RuntimeError("no GPU is left"))
    noted = noted_failure(tmp_path)
    assert noted is not None
    assert noted._replace(time=0) == Failure("RuntimeError: no GPU is left", 0)


def test_a_run_that_has_begun_tells_by_itself(tmp_path: Path) -> None:
    write_status(tmp_path, Status("running", job="7", restarts=1))
    fail(tmp_path, ValueError("later"), restarts=1)
    assert noted_failure(tmp_path) is None
    fail(tmp_path, ValueError("at once, the next time"), restarts=2)
    assert noted_failure(tmp_path) is not None


def test_outside_of_a_job_nothing_is_written(tmp_path: Path) -> None:
    fail(tmp_path, ValueError("no"), job=None)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_does_not_hide_the_error(tmp_path: Path) -> None:
    (tmp_path / "ranks").write_text("no folder")
    fail(tmp_path, ValueError("no such key"))
