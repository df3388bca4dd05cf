"""Ranks that Slurm has started, and programs that only look like it."""

from __future__ import annotations

import os

import pytest

from mmlab.parallel.srun import Srun, Tasks, launcher, tasks

STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_JOB_NAME": "bash"}


def test_tasks_of_a_step_count_whatever_the_job_is_called() -> None:
    assert tasks(STEP | {"SLURM_NTASKS": "4", "SLURM_NNODES": "2"}) == Tasks(2, 2)
    # A step may take a part of its job.
    part = {
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_NTASKS": "4",
        "SLURM_NNODES": "2",
    }
    assert tasks(STEP | part) == Tasks(1, 2)


def test_a_program_without_srun_is_one_process() -> None:
    batch = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_NNODES": "2"}
    assert tasks(batch) is None
    assert tasks(STEP | {"SLURM_NTASKS": "1"}) is None
    assert tasks({}) is None


@pytest.mark.parametrize(
    ("variables", "kind"),
    [
        ({}, "NoneType"),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1"}, "LightningEnvironment"),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, "LightningEnvironment"),
        (STEP | {"SLURM_NTASKS": "4"}, "Srun"),
        ({"SLURM_NTASKS": "1", "TORCHELASTIC_RUN_ID": "a"}, "TorchElasticEnvironment"),
    ],
)
def test_one_task_with_several_devices_is_no_rank_of_slurms(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], kind: str
) -> None:
    for name in list(os.environ):
        if name.startswith(("SLURM_", "TORCHELASTIC_")):
            monkeypatch.delenv(name)
    for name, value in (variables | {"GROUP_RANK": "0"}).items():
        monkeypatch.setenv(name, value)
    if "TORCHELASTIC_RUN_ID" in variables:
        for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "LOCAL_RANK"):
            monkeypatch.setenv(name, "1")
    assert type(launcher()).__name__ == kind


def test_nodes_with_different_numbers_of_tasks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"5 tasks on 2 nodes.*--ntasks-per-node"):
        tasks(STEP | {"SLURM_NTASKS": "5", "SLURM_NNODES": "2"})


def test_a_trainer_for_other_devices_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (STEP | {"SLURM_NTASKS": "4", "SLURM_NNODES": "2"}).items():
        monkeypatch.setenv(name, value)
    found = Srun()
    assert (found.auto_requeue, found.world_size()) == (False, 4)
    found.validate_settings(num_devices=2, num_nodes=2)
    with pytest.raises(ValueError, match=r"srun has started 2 tasks on each of 2 nodes"):
        found.validate_settings(num_devices=4, num_nodes=1)
