"""One sentence about what held training up, with a remedy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

_NOTABLE = {"data": 0.1, "copy": 0.1, "communication": 0.15, "optimizer": 0.2, "other": 0.15}
"""Shares of the time from which on a phase is worth a remedy."""
_GOOD_MFU = 0.4
"""Of the device's peak: most of what networks of matrix products reach."""
_ROOM = 0.5
"""Of the device's memory: whoever holds less need not save it."""


class Setting(NamedTuple):
    """What a run has switched on, as far as a remedy depends on it."""

    device: str
    """Type."""
    workers: int
    """Processes of each rank that build batches."""
    valid_workers: tuple[int, ...]
    """Numbers of them that the order of samples and the machine allow, ascending."""
    caches: bool
    """Whether frozen encoders run that a feature cache would stand in for."""
    low_precision: bool
    compiled: bool
    fused: bool
    """Whether the optimizer is."""
    accumulates: bool
    checkpointing: bool
    memory: float | None
    """Share of the device's memory that the run has held at most; None where that is not known."""


def verdict(shares: Mapping[str, float], setting: Setting, mfu: float | None = None) -> str:
    """Say what took the time that could be had back, and how.

    Args:
        shares: Of the wall time: data, copy, forward, backward, optimizer, communication, other.
        setting: What the run has switched on.
        mfu: Operations of the model a second by what the device can do; None: unknown.
    """
    notable = {phase: shares[phase] for phase, share in _NOTABLE.items() if shares[phase] >= share}
    worst = max(notable, key=lambda phase: notable[phase], default=None)
    if worst is None:
        return _model(shares, setting, mfu)
    percent = f"{100 * shares[worst]:.0f} % of the time"
    if worst == "data":
        return f"waiting for data {percent}: {_data(shares['data'], setting)}"
    if worst == "copy":
        remedy = (
            "data.loading.num_workers 1 or more lays batches ready for the device"
            if setting.workers == 0
            else "smaller inputs, or larger models"
        )
        return f"copying batches to the device {percent}: {remedy}"
    if worst == "communication":
        remedy = "" if setting.accumulates else "trainer.accumulate_grad_batches 2 or "
        return f"exchange between ranks {percent}: {remedy}a larger batch"
    if worst == "optimizer":
        remedy = "" if setting.fused else "fused: true for the optimizer or "
        return f"the optimizer's step {percent}: {remedy}a larger batch"
    return f"callbacks, logs and checkpoints {percent}: log and save less often, or use a larger batch"


def _data(share: float, setting: Setting) -> str:
    # One process builds a batch in the time that waiting and working take together, divided by the workers.
    working = max(1 - share, 0.01)
    needed = math.ceil(share / working if setting.workers == 0 else setting.workers / working - 1e-9)
    more = [number for number in setting.valid_workers if number > setting.workers]
    enough = next((number for number in more if number >= needed), more[-1] if more else None)
    remedies = []
    if enough is not None:
        added = enough - setting.workers
        remedies.append(f"{added} more worker{'s'[: added > 1]} (data.loading.num_workers {enough})")
    if setting.caches:
        remedies.append("a feature cache (mmlab data features)")
    if not remedies:
        remedies.append("no processor is left for more workers; inputs stored smaller are read faster")
    return " or ".join(remedies)


def _model(shares: Mapping[str, float], setting: Setting, mfu: float | None) -> str:
    part = "forward" if shares["forward"] > shares["backward"] else "backward"
    reached = "" if mfu is None else f", {100 * mfu:.0f} % of the device's peak"
    bound = f"bound by the model ({part} {100 * shares[part]:.0f} %{reached})"
    remedies = []
    if setting.caches:
        remedies.append("a feature cache (mmlab data features)")
    if setting.device == "cuda" and not setting.low_precision:
        remedies.append("trainer.precision bf16-mixed")
    if mfu is None or mfu < _GOOD_MFU:
        if not setting.compiled:
            remedies.append("execution.compile true")
        if setting.memory is not None and setting.memory < _ROOM:
            remedies.append("less checkpointing" if setting.checkpointing else "a larger batch")
    if not remedies:
        return f"{bound}: what could speed it up is on"
    return f"{bound}: {' or '.join(remedies)} would help"
