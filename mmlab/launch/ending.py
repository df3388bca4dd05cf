"""What follows the end of a run's processes: whether the job is queued again."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from mmlab.launch import slurm

HUNG = 75
"""Exit status of a run that its watchdog has ended."""
_NEVER = (0, 2, 130, 143)
"""Finished, an error of the user, Ctrl-C, told to stop (who told it to knows whether it is to go on)."""


def ended(run: Path, status: int) -> int:
    """Queue the job again where that may help: after a hang or a kill, so many times.

    Args:
        run: The run directory.
        status: Exit status of its processes.

    Returns:
        The status.
    """
    if status in _NEVER or (status != HUNG and status < 128):
        return status
    most = int(os.environ.get("MMLAB_REQUEUES", "3"))
    record = run / "endings.jsonl"
    before = len(record.read_text(encoding="utf-8").splitlines()) if record.exists() else 0
    job = _job()
    with record.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"time": time.time(), "status": status, "job": job}) + "\n")
    if job is None:
        return status
    if before >= most:
        print(f"mmlab: not queued again: this run has ended badly {before + 1} times, {most} are allowed")
    elif slurm.show(job).get("JobState") != "RUNNING":
        print("mmlab: not queued again: the job is being ended from outside")
    else:
        print(f"mmlab: queued again after exit status {status} ({before + 1} of {most} times)", flush=True)
        slurm.call("scontrol", "requeue", job)
    return status


def _job() -> str | None:
    """Slurm's id of this job, or task of an array; None outside."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    if array is not None:
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")
