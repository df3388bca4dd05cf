"""Jobs that tests of the batch script share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mmlab.launch.job import JobSpec, Resources
from mmlab.launch.profile import Container, Profile

CPU = JobSpec(
    name="smoke",
    run=Path("/home/me/runs/smoke/20260101-120000-abcd"),
    directory=Path("/home/me"),
    words=("--config", "/home/me/runs/smoke/20260101-120000-abcd/configs/0-smoke.yaml"),
    resources=Resources(nodes=2, tasks_per_node=2, time="10"),
    profile=Profile(),
    python="/home/me/.venv/bin/python",
    environment=(("WANDB_MODE", "offline"),),
)
SITE = replace(
    CPU,
    name="stamps",
    run=Path("/home/me/runs/stamps/20260101-120000-abcd"),
    words=(*CPU.words, "--trainer.precision", "bf16-mixed"),
    resources=Resources(
        nodes=2, tasks_per_node=4, gpus_per_node=4, cpus_per_task=8, mem="200G", time="12:00:00"
    ),
    profile=Profile(
        partition="gpu",
        account="vision",
        qos="long",
        constraint="a100|h100",
        options=("--exclusive",),
        modules=("cuda/12.8", "nccl"),
        venv="/home/me/.venv",
        environment={"NCCL_DEBUG": "WARN"},
        setup=("ulimit -n 65536",),
    ),
    python="python",
    code=(Path("/home/me/runs/stamps/20260101-120000-abcd/code"),),
    dependency="afterok:77",
)
ARRAY = replace(
    CPU, words=(*CPU.words, "--seed_everything", "%a", "--run.note", "it's %a of 6"), array="0-5%2"
)
APPTAINER = replace(
    SITE,
    profile=Profile(container=Container("/images/mmlab.sif", options=("--bind=/scratch",))),
    dependency=None,
)
PYXIS = replace(
    APPTAINER,
    profile=Profile(
        container=Container("nvcr.io#nvidia/pytorch:25.09-py3", "pyxis", ("--container-mounts=/work:/work",))
    ),
)
ALL = {"cpu": CPU, "site": SITE, "array": ARRAY, "apptainer": APPTAINER, "pyxis": PYXIS}
