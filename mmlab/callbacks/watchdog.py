"""Ends a run that hangs, after every rank has written down where it is; ends ranks whose launcher died."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from mmlab.callbacks.hang_report import Samples, calls, listing, main_calls, waits_in, write_report
from mmlab.callbacks.whereabouts import Whereabouts
from mmlab.runs.rank_page import read_pages

HUNG = 75
"""Exit status of a run that hung: EX_TEMPFAIL, worth another try."""
FOLDER = "hangs"
"""Of the run directory."""
GRACE = 5.0
"""Seconds in which the other ranks write their reports before the first ends."""
LAST = 60.0
"""Seconds after which a rank ends whose report is not written."""
_TICK = 1.0
_DEBUGGERS = ("pdb.py", "bdb.py")


class Watchdog(Callback):
    """Watches, from a thread of each rank, for signs of life (see :class:`Whereabouts`).

    Where none comes for too long, the rank writes `hangs/TIME-rankR.txt` into the run directory: what it is
    doing, the collective it waits in, the stacks of its threads, its workers, memory, the samples of this
    step and the next with their shards. The others do the same, at the latest when they see its file. Then
    the run ends with status 75.

    Time counts while the thread is awake: a process that was stopped, or a laptop that slept, does not hang.
    Nor does one in a debugger.

    A rank that Lightning's launcher started ends when the launcher has died, whatever it waits for; the other
    way round Lightning's launcher sees to it.
    """

    on_hang: Callable[[str], None] | None = None
    """Told in a line why the run ends, before it does."""

    def __init__(self, minutes: float = 10.0, first: float = 30.0, abort: bool | None = None) -> None:
        """Settings.

        Args:
            minutes: Without a sign of life, within a pass over a split. 0: nobody watches.
            first: Minutes where more than a batch goes on: before the first batch of a pass is done (workers
                start, the model is compiled), while the metrics of a pass are computed, and in saves. At
                least `minutes` in any case.
            abort: Whether to end the run; false only writes the file. None ends it under Slurm and where
                there are several ranks: nobody watches these, and they occupy what others wait for.

        Raises:
            ValueError: `minutes` or `first` is below 0.
        """
        for name, value in (("minutes", minutes), ("first", first)):
            if not value >= 0:
                raise ValueError(f"watchdog.{name} is {value:g}: it must be at least 0")
        self.minutes = minutes
        self.first = max(first, minutes)
        self.abort = abort
        self._watch: _Watch | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Begin to watch."""
        self._end()
        if self.minutes == 0:
            return
        found = [one for one in trainer.callbacks if isinstance(one, Whereabouts)]  # type: ignore[attr-defined]
        if not found:  # a trainer that only looks, without a run directory
            return
        where = found[0]
        several = trainer.world_size > 1 or "SLURM_JOB_ID" in os.environ
        self._watch = _Watch(self, trainer, where, abort=several if self.abort is None else self.abort)
        threading.Thread(target=self._watch.run, name="watchdog", daemon=True).start()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Watch no longer."""
        self._end()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Watch no longer, unless the run is being ended: then collectives fail, which is no news."""
        if self._watch is not None and self._watch.ending:
            time.sleep(2 * GRACE)
        self._end()

    def _end(self) -> None:
        if self._watch is not None:
            self._watch.stop.set()
            self._watch = None


class _Watch:
    """What the thread does in one stage of a trainer."""

    def __init__(self, dog: Watchdog, trainer: L.Trainer, where: Whereabouts, *, abort: bool) -> None:
        self.dog = dog
        self.where = where
        self.abort = abort
        self.stop = threading.Event()
        self.ending = False
        self.rank, self.ranks = trainer.global_rank, trainer.world_size
        self.folder = where.directory / FOLDER
        self.tick = min(_TICK, dog.minutes * 60 / 20)
        self.parent = os.getppid()
        self.known = self._files()
        # Lightning's launcher has started these, and kills this process too when one of them fails.
        self.started: list[Any] = getattr(trainer.strategy.launcher, "procs", [])
        data: Any = getattr(trainer, "datamodule", None)
        self.samples_at: Any = getattr(data, "samples_at", None)

    def run(self) -> None:
        """Watch until told to stop."""
        try:
            self._watch()
        except OSError as error:
            print(f"mmlab: the watchdog of rank {self.rank} sees no more: {error}", file=sys.stderr)

    def _watch(self) -> None:
        quiet, signs, said = 0.0, -1, -1
        while not self.stop.wait(self.tick):
            self._look_for_parent()
            if self.where.signs != signs:
                quiet, signs = 0.0, self.where.signs
                continue
            quiet += self.tick
            limit = 60 * (self.dog.first if self.where.slow else self.dog.minutes)
            others = quiet >= limit / 2 and self._files() > self.known
            if said == signs or not (quiet >= limit or others):
                continue
            if debugged():
                quiet = 0.0
                continue
            said = signs
            self._bark(quiet)

    def _bark(self, quiet: float) -> None:
        """Report, and end the run; also where the file system of the report is what hangs."""
        if self.abort:
            last = threading.Timer(LAST, _leave, [HUNG])
            last.daemon = True
            last.start()
        waits = waits_in(main_calls())
        path = self.folder / f"{time.strftime('%Y%m%d-%H%M%S')}-rank{self.rank}.txt"
        where = self.where
        reason = f"rank {self.rank} {where.doing}, without a sign of life for {_spoken(quiet)}: it {waits}"
        head = (
            f"rank {self.rank} of {self.ranks}, process {os.getpid()} on {socket.gethostname()}, "
            f"{time.strftime('%Y-%m-%d %H:%M:%S')}\n{reason}\nphase {where.phase}, step {where.step}\n"
            f"keys of its last batch: {listing(where.keys)}"
        )
        try:
            write_report(path, head, self._samples(), where.step)
            seen = f"see {path}"
        except OSError as error:
            seen = f"{path} could not be written: {error}"
        print(f"mmlab: {reason}; {seen}", file=sys.stderr, flush=True)
        self.known = self._files()
        if not self.abort:
            return
        self.ending = True
        self.started.clear()  # they end by themselves, and this process with its own status
        if self.dog.on_hang is not None:
            self.dog.on_hang(reason)
        time.sleep(GRACE)
        _leave(HUNG)

    def _samples(self) -> Samples | None:
        """Who names the samples of a step."""
        phase = self.where.phase if self.where.phase in ("val", "test", "predict") else "train"
        return None if self.samples_at is None else lambda step: list(self.samples_at(phase, step))

    def _files(self) -> set[str]:
        """Reports in the run directory."""
        return {path.name for path in self.folder.glob("*-rank*.txt")}

    def _look_for_parent(self) -> None:
        """End where the launcher has died that started this rank, unless training ends by itself."""
        if os.getppid() == self.parent:
            return
        pages = read_pages(self.where.directory)
        here = socket.gethostname()
        started = any(page.pid == self.parent and page.host == here for page in pages)
        # Where a shell that started the run has ended, the run goes on.
        if started and not self.stop.wait(GRACE):
            print(f"mmlab: rank {self.rank} ends, as the process that started it has", file=sys.stderr)
            _leave(1)
        self.parent = os.getppid()


def _leave(status: int) -> None:
    """End at once: other threads, and what is registered for the end, may wait for what never comes."""
    for child in multiprocessing.active_children():  # a worker that hangs would stay
        child.kill()
    sys.stderr.flush()
    os._exit(status)


def debugged() -> bool:
    """Whether somebody looks into this process with a debugger."""
    status = Path("/proc/self/status")
    if status.exists() and any(
        line.startswith("TracerPid") and line.split()[1] != "0" for line in status.read_text().splitlines()
    ):
        return True
    if "pydevd" in sys.modules:
        return True
    frames = sys._current_frames().values()
    return any(call.file.endswith(_DEBUGGERS) for frame in frames for call in calls(frame))


def _spoken(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
