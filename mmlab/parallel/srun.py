"""Ranks that Slurm starts: who they are, and how they are spread."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment


class Tasks(NamedTuple):
    """The tasks of a step of a Slurm job."""

    nodes: int
    per_node: int


def tasks(environment: Mapping[str, str] = os.environ) -> Tasks | None:
    """The tasks among which this process is one; None where srun has not started several.

    Lightning looks at the job: it takes a program that was started without srun for the first of all tasks,
    and waits for the others for ever, and goes by the name of the job, `bash` or `interactive`.

    Raises:
        ValueError: Nodes have different numbers of tasks.
    """
    count = int(environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS") or 1)
    if "SLURM_STEP_ID" not in environment or "SLURM_PROCID" not in environment or count == 1:
        return None
    nodes = int(environment.get("SLURM_STEP_NUM_NODES") or environment.get("SLURM_NNODES") or 1)
    if count % nodes != 0:
        raise ValueError(
            f"{count} tasks on {nodes} nodes: every node needs as many, set --ntasks-per-node and --nodes"
        )
    return Tasks(nodes, count // nodes)


class Srun(SLURMEnvironment):
    """Lightning's, which saves and requeues nothing by itself, and takes tasks as srun has spread them.

    Raises:
        ValueError: At the start, where the trainer is set for other numbers of tasks.
    """

    def __init__(self) -> None:
        super().__init__(auto_requeue=False)

    def world_size(self) -> int:
        """Tasks of this step, not of the job."""
        spread = tasks()
        return 1 if spread is None else spread.nodes * spread.per_node

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """Refuse a trainer that would run on other devices than Slurm has given."""
        spread = tasks()
        if spread is not None and spread != (num_nodes, num_devices):
            raise ValueError(
                f"trainer.num_nodes={num_nodes}, trainer.devices={num_devices}, but srun has started "
                f"{spread.per_node} tasks on each of {spread.nodes} nodes: leave both out, or make them equal"
            )

    @staticmethod
    def _validate_srun_used() -> None:
        """Who is here was started by srun."""

    @staticmethod
    def _validate_srun_variables() -> None:
        """See :func:`tasks`."""


def launcher() -> ClusterEnvironment | None:
    """Who has started the ranks, where Lightning would take Slurm for it by the mere look of the job.

    One task with several GPUs is no rank of Slurm's: Lightning is to start the others.
    """
    if tasks() is not None:
        return Srun()
    if "SLURM_NTASKS" not in os.environ:
        return None
    return TorchElasticEnvironment() if TorchElasticEnvironment.detect() else LightningEnvironment()
