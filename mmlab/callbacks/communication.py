"""What share of a step its collectives take beyond the work that goes on beside them, by a profile of it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

_COLLECTIVE = ("nccl", "gloo:")
_COMPUTE = "aten::"
_RARELY = 200
"""Time between two profiles, in times of what one costs."""


class Interval(NamedTuple):
    """A stretch of time, in any unit."""

    start: float
    stop: float


class Profiles:
    """Profiles a step now and then, at half a percent of the time, and keeps what the last one said."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.share = 0.0
        """Of the last profiled step that was nothing but communication."""
        self._running: profile | None = None
        self._began = 0.0
        self._next = 0.0

    def begin(self) -> bool:
        """Profile from here on, if it is time to; returns whether."""
        if time.monotonic() < self._next:
            return False
        # Its logger tells every start and stop, and that there is no GPU where there is none.
        os.environ.setdefault("KINETO_LOG_LEVEL", "9")
        self._began = time.monotonic()
        cuda = self.device.type == "cuda"
        self._running = profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU])
        self._running.start()
        return True

    def end(self) -> None:
        """The step is over."""
        if self._running is None:
            return
        self._running.stop()
        self.share = exposed_share(self._running.events())  # type: ignore[no-untyped-call]
        self._running = None
        now = time.monotonic()
        self._next = now + _RARELY * (now - self._began)


def exposed_share(events: Iterable[FunctionEvent]) -> float:
    """Share of the time from the first to the last event in which collectives run and nothing else does."""
    whole: list[Interval] = []
    collectives: list[Interval] = []
    compute: list[Interval] = []
    for event in events:
        interval = Interval(event.time_range.start, event.time_range.end)
        whole.append(interval)
        kernel = event.device_type.name != "CPU" and not event.is_user_annotation
        if event.name.startswith(_COLLECTIVE):
            collectives.append(interval)
        elif kernel or event.name.startswith(_COMPUTE):
            compute.append(interval)
    span = max((i.stop for i in whole), default=0.0) - min((i.start for i in whole), default=0.0)
    if span <= 0:
        return 0.0
    return (covered([*collectives, *compute]) - covered(compute)) / span


def covered(intervals: Iterable[Interval]) -> float:
    """Length of the union."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(intervals):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total
