"""Signals by which a cluster tells a run to stop: noted, and nothing else."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NamedTuple

Handler = Callable[[int, FrameType | None], None] | signal.Handlers
AHEAD = signal.SIGUSR1
"""Sent some time before the end, as `sbatch --signal=USR1@SECONDS` asks, or by `scancel --signal=USR1`."""
NOW = signal.SIGTERM
"""Sent when the time is up; SIGKILL follows after KillWait seconds."""


class Told(NamedTuple):
    """The first signal that came."""

    signal: signal.Signals
    at: float
    """Unix seconds."""

    @property
    def name(self) -> str:
        """As people know it, `SIGTERM`."""
        return self.signal.name


class Notice:
    """Remembers the first signal that says to stop.

    A handler that saved, logged or spoke to other ranks would do so in the middle of whatever the program is
    doing; this one takes a note, and training looks at it between two steps.
    """

    def __init__(self) -> None:
        self.told: Told | None = None

    @contextmanager
    def listening(self) -> Iterator[Notice]:
        """Take the signals in here; only the main thread of a process may.

        SIGCONT, which Slurm sends along with SIGTERM, changes nothing.
        """
        handlers: dict[signal.Signals, Handler] = {
            AHEAD: self.note,
            NOW: self.note,
            signal.SIGCONT: signal.SIG_IGN,
        }
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def note(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        if self.told is None:
            self.told = Told(signal.Signals(number), time.time())
