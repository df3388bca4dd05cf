"""What the nodes are asked with."""

from __future__ import annotations

from dataclasses import replace

import job_specs
import pytest

from mmlab.launch import nodes, slurm


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What Slurm was asked; it does not answer."""
    found: list[tuple[str, ...]] = []

    def call(*words: str, seconds: float) -> str:
        found.append(words)
        raise slurm.SlurmError("enough")

    monkeypatch.setattr(slurm, "call", call)
    return found


def test_nodes_are_asked_in_the_environment_of_the_job(asked: list[tuple[str, ...]]) -> None:
    nodes.ask_nodes(job_specs.SITE)
    lines = asked[0][-1].splitlines()
    assert lines[:3] == ["set -e", "module load cuda/12.8 nccl", "source /home/me/.venv/bin/activate"]
    # After the usual values, so that a site can say otherwise.
    assert lines[3].startswith("export OMP_NUM_THREADS=")
    assert lines[5:8] == ["export WANDB_MODE=offline", "export NCCL_DEBUG=WARN", "ulimit -n 65536"]


def test_options_for_sbatch_are_words_for_srun(asked: list[tuple[str, ...]]) -> None:
    site = replace(job_specs.SITE.profile, options=("--mail-type=END --exclusive", '--comment="x y"'))
    nodes.ask_nodes(replace(job_specs.SITE, profile=site))
    for word in ("--mail-type=END", "--exclusive", "--comment=x y"):
        assert word in asked[0]
