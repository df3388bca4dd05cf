"""Where the time of training steps goes: phases of a timeline, on the clock of the device that computes."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.profilers import Profiler

PHASES = ("data", "copy", "forward", "backward", "optimizer", "other")
"""Waiting for a batch; bringing it to the device; the three parts of the step; hooks, logs, checkpoints."""
_ACTIONS = {
    "train_dataloader_next": "data",
    "batch_to_device": "copy",
    "training_step": "forward",
    "backward": "backward",
    "optimizer_step": "optimizer",
}
"""What Lightning calls the beginning and end of a phase by. The last one holds two of the others in it."""
_CALLERS = ("[_TrainingEpochLoop]", "[Strategy]", "[LightningModule]")


class Clock(ABC):
    """Marks moments and says later how far they are apart."""

    @abstractmethod
    def mark(self) -> Any:
        """This moment."""

    @abstractmethod
    def passed(self, mark: Any) -> bool:
        """Whether that moment has come: a GPU works behind the program."""

    @abstractmethod
    def seconds(self, first: Any, second: Any) -> float:
        """Between two moments that have passed."""

    @abstractmethod
    def wait(self, mark: Any) -> None:
        """Until that moment has come."""


class HostClock(Clock):
    """For a CPU: the program does the work itself."""

    def mark(self) -> float:
        """This moment, in seconds."""
        return time.perf_counter()

    def passed(self, mark: float) -> bool:
        """Always."""
        return True

    def seconds(self, first: float, second: float) -> float:
        """Between two moments."""
        return second - first

    def wait(self, mark: float) -> None:
        """Nothing to wait for."""


class DeviceClock(Clock):
    """For a GPU: marks are events in its queue of work, so nobody waits for it, and idle time counts too."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def mark(self) -> torch.cuda.Event:
        """The moment when the GPU will have done what it has been given so far."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        return event

    def passed(self, mark: torch.cuda.Event) -> bool:
        """Whether the GPU has come so far."""
        return bool(mark.query())  # type: ignore[no-untyped-call]

    def seconds(self, first: torch.cuda.Event, second: torch.cuda.Event) -> float:
        """Between two events that have happened."""
        return float(first.elapsed_time(second)) / 1000

    def wait(self, mark: torch.cuda.Event) -> None:
        """Until the GPU has come so far."""
        mark.synchronize()


class Stretch(NamedTuple):
    """A part of the timeline in one phase; its ends are marks of the clock."""

    phase: str
    start: Any
    stop: Any


class Timeline:
    """Cuts the time from `run` to `pause` into stretches; a phase inside another interrupts it."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._stretches: list[Stretch] = []
        self._inside: list[str] = []
        self._start: Any = None

    def run(self) -> None:
        """Count from here; what was not taken is forgotten."""
        self._stretches, self._inside = [], []
        self._start = self.clock.mark()

    def pause(self) -> None:
        """Leave out what passes until `run`, and what passed since the last phase."""
        self._start = None

    def enter(self, phase: str) -> None:
        """A phase begins."""
        self._cut()
        self._inside.append(phase)

    def leave(self) -> None:
        """The phase that began last is over."""
        self._cut()
        if self._inside:
            self._inside.pop()

    def take(self) -> list[Stretch]:
        """The stretches since the last time, up to here."""
        self._cut()
        taken, self._stretches = self._stretches, []
        return taken

    def seconds(self, stretches: list[Stretch]) -> Mapping[str, float]:
        """Seconds of each phase; the clock must have passed them."""
        found = dict.fromkeys(PHASES, 0.0)
        for stretch in stretches:
            found[stretch.phase] += self.clock.seconds(stretch.start, stretch.stop)
        return found

    def _cut(self) -> None:
        if self._start is not None:
            now = self.clock.mark()
            self._stretches.append(Stretch(self._inside[-1] if self._inside else "other", self._start, now))
            self._start = now


def watch(trainer: L.Trainer, timeline: Timeline) -> None:
    """Let a timeline follow what a trainer does; its profiler is told as before."""
    trainer.profiler = PhaseProfiler(timeline, trainer.profiler)  # type: ignore[attr-defined]


def unwatch(trainer: L.Trainer) -> bool:
    """Undo :func:`watch`; returns whether there was anything to undo."""
    profiler = trainer.profiler  # type: ignore[attr-defined]
    if not isinstance(profiler, PhaseProfiler):
        return False
    trainer.profiler = profiler.inner  # type: ignore[attr-defined]
    return True


class PhaseProfiler(Profiler):
    """Tells a timeline what Lightning tells its profiler, and the user's own profiler too."""

    def __init__(self, timeline: Timeline, inner: Profiler) -> None:
        super().__init__()
        self.timeline = timeline
        self.inner = inner
        self._phases: dict[str, str | None] = {}

    def start(self, action_name: str) -> None:
        """An action begins."""
        self.inner.start(action_name)
        phase = self._phase(action_name)
        if phase is not None:
            self.timeline.enter(phase)

    def stop(self, action_name: str) -> None:
        """An action is over."""
        if self._phase(action_name) is not None:
            self.timeline.leave()
        self.inner.stop(action_name)

    def _phase(self, action: str) -> str | None:
        if action not in self._phases:
            known = action.startswith(_CALLERS)
            self._phases[action] = _ACTIONS.get(action.rpartition(".")[2]) if known else None
        return self._phases[action]
