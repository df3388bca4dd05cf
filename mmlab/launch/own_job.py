"""The Slurm job that this process is part of: how long it may last, and how it begins again."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple

from mmlab.launch import slurm
from mmlab.launch.notice import AHEAD, Told

SECONDS = 10.0
"""After so long without an answer Slurm's controller is not waited for."""
PATIENCE = 60.0
"""Seconds in which it is asked again: a rank has not much longer to live."""


class Standing(NamedTuple):
    """What Slurm says of a job."""

    state: str
    """`RUNNING`, `COMPLETING`, ..."""
    reason: str
    restarts: int
    ends: float | None
    """Unix seconds; None: unknown."""
    preempted: bool = False
    """Whether another job has taken its place since it started."""


class OwnJob(NamedTuple):
    """A job by the name that `scontrol` takes."""

    id: str
    """`1001`, or `1001_3` of an array."""
    restarts: int
    """How often it had been requeued when this process began."""

    @classmethod
    def find(cls, environment: Mapping[str, str] = os.environ) -> OwnJob | None:
        """The job of this process; None outside Slurm."""
        job = environment.get("SLURM_JOB_ID")
        if job is None:
            return None
        array, task = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
        name = f"{array}_{task}" if array is not None and task is not None else job
        return cls(name, int(environment.get("SLURM_RESTART_COUNT", "0")))

    def standing(self, *, patience: float = SECONDS) -> Standing | None:
        """How the job stands; None where Slurm does not answer within so many seconds."""
        try:
            return read_standing(slurm.show(self.id, seconds=patience))
        except slurm.SlurmError:
            return None

    def out_of_time(self) -> bool:
        """Whether it is the end of its walltime that has stopped it, within an hour, and not another job."""
        now = self.standing(patience=1.0)
        if now is None or now.ends is None or now.preempted:
            return False
        return now.reason == "TimeLimit" or (now.state == "RUNNING" and now.ends - time.time() < 3600)

    def requeue(self, why: str, *, patience: float = PATIENCE) -> str:
        """Begin the job again, unless Slurm does so or somebody has cancelled it; says what was done.

        Rank 0, or the batch script, calls this once, when all is saved: the job ends with it.

        Args:
            why: What led to it, `after SIGUSR1`.
            patience: Seconds in which a controller that is being restarted may come back.
        """
        there = shutil.which("scontrol") is not None  # not so in a container
        end = time.monotonic() + (patience if there else 0)
        while (done := self._requeue(why)) is None:
            if time.monotonic() >= end:
                by_hand = f"scontrol requeue {self.id}"
                return f"job {self.id}: Slurm does not answer, so it was not requeued: {by_hand}"
            time.sleep(1)
        return done

    def _requeue(self, why: str) -> str | None:
        """What was done; None: Slurm does not answer."""
        now = self.standing()
        if now is None:
            return None
        if now.restarts > self.restarts:
            return f"job {self.id}: Slurm requeues it"
        # Preempted by a partition with PreemptMode=CANCEL it is ending, and Slurm does not requeue it.
        if now.state != "RUNNING" and now.reason != "TimeLimit" and not now.preempted:
            return f"job {self.id} is {now.state.lower()}: not requeued"
        try:
            slurm.call("scontrol", "requeue", self.id, seconds=SECONDS)
        except slurm.NoAnswerError:
            return None
        except slurm.SlurmError as error:
            return f"job {self.id} could not be requeued: {error}"
        return f"job {self.id} requeued {why}"

    def seconds_left(self, told: Told, *, kill_wait: float) -> float:
        """How long this process lives on, at worst, after a signal.

        Args:
            told: The signal, from which on Slurm counts where it says nothing else.
            kill_wait: Seconds from SIGTERM to SIGKILL, see :func:`kill_wait`.
        """
        now, standing = time.time(), self.standing(patience=1.0)  # it is time that is asked for
        ends = None if standing is None else standing.ends
        if told.signal == AHEAD and standing is not None and standing.state == "RUNNING":
            return float("inf") if ends is None else ends - now
        return max(told.at, told.at if ends is None else ends) + kill_wait - now


def kill_wait() -> float:
    """Seconds that this cluster leaves a process between SIGTERM and SIGKILL; Slurm's default is 30."""
    try:
        said = slurm.settings(seconds=SECONDS).get("KillWait", "")
    except slurm.SlurmError:
        said = ""
    return float(said.split(" ")[0] or 30)


def read_standing(said: Mapping[str, str]) -> Standing:
    """What `scontrol show job` says, as :func:`mmlab.launch.slurm.show` gives it."""
    try:
        ends = datetime.fromisoformat(said.get("EndTime", "")).timestamp()
    except ValueError:  # `Unknown`
        ends = None
    preempted, started = said.get("PreemptTime", "None"), said.get("StartTime", "")
    return Standing(
        said.get("JobState", ""), said.get("Reason", ""), int(said.get("Restarts") or 0), ends,
        preempted[:1].isdigit() and preempted >= started,
    )  # fmt: skip
