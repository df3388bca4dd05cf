"""What the nodes are asked with."""

from __future__ import annotations

import job_specs
import pytest

from mmlab.launch import nodes, slurm


def test_nodes_are_asked_in_the_environment_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def call(*words: str, seconds: float) -> str:
        asked.append(words)
        raise slurm.SlurmError("enough")

    monkeypatch.setattr(slurm, "call", call)
    nodes.ask_nodes(job_specs.SITE)
    lines = asked[0][-1].splitlines()
    assert lines[:6] == [
        "set -e", "module load cuda/12.8 nccl", "source /home/me/.venv/bin/activate",
        "export WANDB_MODE=offline", "export NCCL_DEBUG=WARN", "ulimit -n 65536",
    ]  # fmt: skip
