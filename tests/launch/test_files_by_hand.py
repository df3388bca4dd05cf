"""slurm/sweep.sbatch and slurm/train.sbatch as a shell reads them, without a cluster."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "slurm"
TOOLS = {
    "scontrol": 'printf "%s\\n" "$@" > "$NOTED.comment"; exit 1',
    "srun": 'echo "$SLURM_EXPORT_ENV" > "$NOTED.export"',
    "python": "echo 4567",
}


def run(script: Path, *words: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "NOTED": str(folder / "noted")}
    return subprocess.run(
        ["bash", str(script), *words], cwd=folder, env=environment | variables, capture_output=True,
        text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        ("--a 'b c'  \"d\"", 0, ["--given", "--a", "b c", "d"]),
        ("--a 'b c", 2, []),
        ('--a "b', 2, []),
        ("  ", 2, []),
    ],
)
def test_a_line_of_a_sweep(tmp_path: Path, line: str, status: int, said: list[str]) -> None:
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "train.sbatch").write_text('printf "%s\\n" "$@"\n')
    (tmp_path / "values").write_text(f"--other 1\n{line}\n")
    done = run(
        FOLDER / "sweep.sbatch", "values", "--given", folder=tmp_path, SLURM_ARRAY_TASK_ID="1"
    )  # fmt: skip
    assert (done.returncode, done.stdout.splitlines()) == (status, said), done.stderr
    assert status == 0 or ("values" in done.stderr and "line 2" in done.stderr)


def test_a_task_comments_on_itself_and_hands_its_variables_on(tmp_path: Path) -> None:
    for name, body in TOOLS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    done = run(
        FOLDER / "train.sbatch", folder=tmp_path, SLURM_JOB_ID="70", SLURM_ARRAY_JOB_ID="70",
        SLURM_ARRAY_TASK_ID="3", SLURM_JOB_NAME="x", SLURMD_NODENAME="node1", SLURM_NNODES="1",
        SLURM_NTASKS_PER_NODE="1", SLURM_EXPORT_ENV="NONE",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr  # although Slurm took no comment
    comment = (tmp_path / "noted.comment").read_text().splitlines()
    assert comment == ["update", "JobId=70_3", f"Comment=mmlab {tmp_path}/runs/x/job-70-3"]
    assert (tmp_path / "noted.export").read_text() == "ALL\n"
