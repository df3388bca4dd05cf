"""`mmlab submit` up to the queue, with an sbatch that answers, fails, or loses its answer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mmlab.cli import main
from mmlab.launch import queueing

SMOKE = str(Path(__file__).parents[2] / "experiments" / "retrieval" / "smoke.yaml")
LOST = "echo sbatch: error: Batch job submission failed: Socket timed out on send/recv operation >&2; exit 1"
WORDS = ["submit", "--config", SMOKE, "--time", "30", "--gpus-per-node", "0"]


class Slurm:
    """Commands of Slurm that answer as the test says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.command("sinfo", "echo 'debug*|up|infinite|2|2|4000|(null)'")
        self.command("squeue", "exit 0")

    def command(self, name: str, body: str) -> None:
        (self.folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (self.folder / name).chmod(0o755)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    found = Slurm(tmp_path / "tools")
    monkeypatch.setenv("PATH", f"{found.folder}:{os.environ['PATH']}")
    monkeypatch.setenv("MMLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(queueing, "PAUSE", 0.0)
    monkeypatch.chdir(tmp_path)
    return found


def runs(folder: Path) -> list[Path]:
    return list((folder / "runs" / "smoke").iterdir())


def test_an_answer_that_is_lost_is_found_in_the_queue(
    cluster: Slurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.command("sbatch", f"sed -n 's/^#SBATCH --comment=//p' \"${{@: -1}}\" | tr -d '\"' > c; {LOST}")
    cluster.command(
        "squeue", "echo '5|PENDING|None|0|then|x|other'; echo \"77|PENDING|None|0|then|x|$(cat c)\""
    )
    assert main(WORDS) == 0
    assert capsys.readouterr().out.startswith("job 77: smoke")
    assert '"job": "77"' in (runs(tmp_path)[0] / "submission.json").read_text()


def test_what_the_queue_does_not_have_leaves_nothing_behind(
    cluster: Slurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.command("sbatch", LOST)
    assert main(WORDS) == 2
    assert "the queue does not have the job: try again" in capsys.readouterr().err
    assert runs(tmp_path) == []


def test_the_folder_is_kept_where_nobody_can_tell(
    cluster: Slurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.command("sbatch", LOST)
    cluster.command("squeue", "exit 1")
    assert main(WORDS) == 2
    [run] = runs(tmp_path)
    assert f"the job may be in the queue all the same, so {run} is kept" in capsys.readouterr().err


def test_the_job_is_named_even_if_it_cannot_be_listed(
    cluster: Slurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.command("sbatch", "echo 78")
    (tmp_path / "cache").write_text("no folder")
    assert main(WORDS) == 0
    said = capsys.readouterr()
    assert said.out.startswith("job 78: smoke")
    assert "job 78 is queued, but not on the list of my jobs" in said.err


@pytest.mark.usefixtures("cluster")
def test_what_cannot_be_frozen_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cluster: Slurm
) -> None:
    cluster.command("sbatch", "echo 79")
    (tmp_path / ".git").mkdir()  # damaged: git knows no such checkout
    assert main(WORDS) == 2
    assert f"the code in {tmp_path} cannot be frozen" in capsys.readouterr().err
    assert runs(tmp_path) == []
