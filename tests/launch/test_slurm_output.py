"""What Slurm's commands print, read; and what happens where they are not there, fail or hang."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mmlab.launch import slurm
from mmlab.launch.slurm import Job, NoAnswerError, NodeGroup, SlurmError

QUEUE = """1001|RUNNING|None|0:10|2026-01-01T12:00:00|stamps|mmlab /runs/a|b
1002_3|PENDING|Resources|0:00|2026-01-01T12:00:00|sweep|mmlab /runs/c
1003|COMPLETED|None|1:00|2026-01-01T12:00:00|other|(null)
slurm_load_jobs warning: nonsense
"""
PARTITIONS = """debug*|up|infinite|2|2|4000|gpu:2
gpu|up|2-00:00:00|10|96+|500000+|gpu:a100:4(S:0-1),nvme:1
down|down|n/a|0|0|0|(null)
"""


def test_the_queue() -> None:
    jobs = slurm.parse_queue(QUEUE)
    assert jobs[0] == Job(
        "1001", "RUNNING", "None", "0:10", "2026-01-01T12:00:00", "stamps", "mmlab /runs/a|b"
    )
    assert [job.id for job in jobs] == ["1001", "1002_3", "1003"]
    assert [job.active for job in jobs] == [True, True, False]


def test_partitions() -> None:
    assert slurm.parse_partitions(PARTITIONS) == [
        NodeGroup("debug", True, True, None, 2, 2, 4000, 2),
        NodeGroup("gpu", False, True, 172_800, 10, 96, 500_000, 4),
        NodeGroup("down", False, False, None, 0, 0, 0, 0),
    ]


@pytest.mark.parametrize(
    ("gres", "count"),
    [("(null)", 0), ("gpu:2", 2), ("gpu:a100:4(S:0-1)", 4), ("gpu", 1), ("gpu:v100:2,gpu:a100:1", 3)],
)
def test_gpus_of_a_node(gres: str, count: int) -> None:
    assert slurm.gpus_of(gres) == count


def test_a_record_of_scontrol() -> None:
    line = "JobId=1001 JobName=a b Comment=mmlab /runs/x=1 y StdOut=/l%j.log Power= NumNodes=2"
    assert slurm.parse_record(line) == {
        "JobId": "1001", "JobName": "a b", "Comment": "mmlab /runs/x=1 y", "StdOut": "/l%j.log", "Power": "",
        "NumNodes": "2",
    }  # fmt: skip


def command(folder: Path, body: str) -> str:
    path = folder / "squeue"
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_a_command_that_is_not_there() -> None:
    with pytest.raises(SlurmError, match="there is no no-such-command on this machine"):
        slurm.call("no-such-command")


def test_a_command_that_fails(tmp_path: Path) -> None:
    with pytest.raises(SlurmError, match=r"squeue: error: no controller, sorry$"):
        slurm.call(command(tmp_path, "echo error: no controller, >&2; echo sorry >&2; exit 1"))


def test_a_command_that_hangs(tmp_path: Path) -> None:
    with pytest.raises(SlurmError, match=r"has not answered within 0.2 s"):
        slurm.call(command(tmp_path, "exec sleep 60"), seconds=0.2)


def test_a_command_whose_answer_is_lost(tmp_path: Path) -> None:
    with pytest.raises(NoAnswerError, match="Socket timed out"):
        slurm.call(command(tmp_path, "echo error: Socket timed out on send/recv operation >&2; exit 1"))


def test_variables_of_the_user_do_not_override_a_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PARTITION", "TIMELIMIT", "ERROR", "NO_REQUEUE", "MEM_PER_CPU", "ARRAY_INX", "ACCOUNT"):
        monkeypatch.setenv(f"SBATCH_{name}", "mine")
    script = tmp_path / "job.sh"
    lines = ("--partition=gpu", "--time=10", "--output=x", "--requeue", "--mem=4G")
    script.write_text("#!/bin/bash\n" + "".join(f"#SBATCH {line}\n" for line in lines))
    path = tmp_path / "sbatch"
    path.write_text("#!/bin/bash\nenv | grep ^SBATCH_\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert slurm.submit(script) == "SBATCH_ACCOUNT=mine"  # of which the script says nothing


def test_hidden_partitions_are_seen_whatever_the_user_has_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("squeue", "sinfo"):
        (tmp_path / name).write_text(
            f'#!/bin/bash\necho "$@" $SQUEUE_STATES $SINFO_FORMAT > {tmp_path}/said\n'
        )
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SQUEUE_STATES", "MINE")
    monkeypatch.setenv("SINFO_FORMAT", "MINE")
    for ask in (slurm.queue, slurm.partitions):
        ask()
        said = (tmp_path / "said").read_text().split()
        assert "-a" in said
        assert "MINE" not in said


def test_inside_a_job_its_variables_are_not_handed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "8")
    monkeypatch.setenv("SLURM_CONF", "/etc/x")
    monkeypatch.setenv("SLURM_JWT", "token")
    monkeypatch.setenv("SLURM_CLUSTERS", "big")
    said = slurm.call(command(tmp_path, 'echo "$SLURM_CONF,$SLURM_JWT,$SLURM_CLUSTERS,$SLURM_NTASKS"'))
    assert said == "/etc/x,token,big,\n"
