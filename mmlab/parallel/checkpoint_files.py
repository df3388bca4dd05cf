"""How checkpoints reach the disk: whole or not at all, behind training where memory allows, in order."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from mmlab import collectives
from mmlab.parallel.digests import Digesting, put, remove, unfinished
from mmlab.parallel.folder import write_folder
from mmlab.parallel.snapshot import available_memory, size_of, snapshot
from mmlab.parallel.stored import former_of, open_checkpoint

_log = logging.getLogger(__name__)

DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.EROFS, errno.ESTALE})
"""Errors of a disk: full, over quota, broken, gone. They fail a save, not the run."""
ROOM = 2
"""So many times a checkpoint must fit into free memory to be copied and written behind training."""


class Saved(NamedTuple):
    """A checkpoint that was written."""

    path: Path
    seconds: float
    """From its copy in memory until all is on the disk; the wait for earlier ones does not count."""
    held: float
    """Of these, seconds that training stood still."""
    size: int
    """Bytes on the disk."""
    weights: int
    """Bytes of the weights among them."""


class CheckpointFiles(TorchCheckpointIO):
    """Writes checkpoints as one file each, and reads those of any form.

    A file appears under its name when all of it is on the disk, with its SHA-256 beside it. A disk that is
    full or broken fails the save, not the run: what stood there stays, the log says so, and it is counted.
    Within :meth:`behind`, a copy is written by a thread of its own while training goes on, if memory allows;
    else all is done when a save returns. Saves and removals keep their order, whoever does them. What is to
    be removed after a save that failed stays until a removal follows a save that did not. The folders of
    sharded runs, to which every rank writes, are always written before training goes on.
    """

    def __init__(self) -> None:
        self.last_save: Saved | None = None
        """The newest that is complete; on the rank that writes."""
        self.failed_saves = 0
        """How many were not written."""
        self.last_failure = ""
        """What was said of the newest of these."""
        self._behind = False
        self._told_of_memory = False
        self._worker: ThreadPoolExecutor | None = None
        self._jobs: deque[Future[None]] = deque()
        self._failures: deque[Path] = deque()
        self._failed = False  # the newest save
        self._spared: list[Path] = []

    @contextmanager
    def behind(self) -> Iterator[None]:
        """Saves in here may return before they are complete; :meth:`wait` waits for them."""
        self._behind = True
        try:
            yield
        finally:
            self._behind = False

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint as it is now; of several ranks, one does.

        Raises:
            TypeError: `storage_options` are given, which mean nothing here.
            OSError: It cannot be written for a reason that will not pass, such as missing rights.
        """
        if storage_options is not None:
            raise TypeError(f"storage_options={storage_options!r}: checkpoints are files on a disk")
        weights = size_of(checkpoint.get("state_dict", {}))
        if self._behind and self._has_room(size_of(checkpoint)):
            start = time.perf_counter()
            copy = snapshot(checkpoint)
            held = time.perf_counter() - start
            self._later(lambda: self._save(copy, Path(path), weights, held))
        else:
            self.wait()
            self._save(checkpoint, Path(path), weights, None)

    def _has_room(self, size: int) -> bool:
        """Whether memory is left for a copy, if need be when those that are being written are gone."""
        if available_memory() > ROOM * size:
            return True
        self.wait()
        free = available_memory()
        if free <= ROOM * size and not self._told_of_memory:
            self._told_of_memory = True
            _log.warning(
                "checkpoints are written while training waits: a copy of one needs %s, and %s of memory is "
                "free (wanted: %d times as much)", _bytes(size), _bytes(free), ROOM,
            )  # fmt: skip
        return free > ROOM * size

    def _save(self, checkpoint: dict[str, Any], path: Path, weights: int, held: float | None) -> None:
        start = time.perf_counter()
        try:
            size = write_file(path, checkpoint)
        except OSError as error:
            self._fail(path, error, size_of(checkpoint))
        else:
            seconds = time.perf_counter() - start
            self._succeed(
                Saved(path, (held or 0.0) + seconds, seconds if held is None else held, size, weights)
            )

    def save_folder(self, checkpoint: Mapping[str, Any], path: Path) -> None:
        """Write a sharded checkpoint as a folder, each rank its part, while training waits.

        Every rank must call this. One that cannot write fails the save on all.

        Raises:
            OSError: On all ranks: one cannot write for a reason that will not pass.
        """
        self.wait()
        start = time.perf_counter()
        try:
            size = write_folder(path, checkpoint)
        except OSError as error:
            self._fail(path, error, size_of(dict(checkpoint)))
        else:
            seconds = time.perf_counter() - start
            self._succeed(Saved(path, seconds, seconds, size, size_of(checkpoint["state_dict"])))

    def _succeed(self, saved: Saved) -> None:
        self.last_save, self._failed = saved, False
        self._spared = [path for path in self._spared if path != saved.path]

    def _fail(self, path: Path, error: OSError, needed: int) -> None:
        if error.errno not in DISK:
            raise error
        free = "?"
        with suppress(OSError):
            free = _bytes(shutil.disk_usage(path.parent).free)
        kept = "the one before it is kept" if path.exists() else "there is none of this name"
        room = f"about {_bytes(needed)} needed, {free} free"
        self.last_failure = f"checkpoint {path} was not saved: {error.strerror} ({room}); {kept}"
        if collectives.rank() == 0:
            _log.warning("%s", self.last_failure)
        self._failed = True
        self._failures.append(path)
        self.failed_saves += 1

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint, after the saves that were asked for before; not if the last of them fails."""
        self._collect()
        if self._jobs:
            self._later(lambda: self._remove(Path(path)))
        else:
            self._remove(Path(path))

    def _remove(self, path: Path) -> None:
        newest = None if self.last_save is None else self.last_save.path
        self._spared.append(path)
        if self._failed:
            return
        going, self._spared = self._spared, []
        for each in going:
            if each == newest:
                self._spared.append(each)
                continue
            try:
                remove(each)
            except OSError as error:
                _log.warning("checkpoint %s was not removed: %s", each, error.strerror)
                self._spared.append(each)

    def keep(self, path: str | Path) -> None:
        """Do not remove a checkpoint that a failed save has spared."""
        self.wait()
        self._spared = [spared for spared in self._spared if spared != Path(path)]

    def unsaved(self) -> str | None:
        """Why the newest checkpoint was not written, once all saves are done; None where it was."""
        self.wait()
        return self.last_failure if self._failed else None

    def take_failures(self) -> list[Path]:
        """The checkpoints that were not written, oldest first, each told once."""
        found = []
        while self._failures:
            found.append(self._failures.popleft())
        return found

    def _later(self, job: Callable[[], None]) -> None:
        self._collect()
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._jobs.append(self._worker.submit(job))

    def _collect(self) -> None:
        """Forget jobs that are done; raise what nobody expected."""
        while self._jobs and self._jobs[0].done():
            self._jobs.popleft().result()

    @property
    def busy(self) -> bool:
        """Whether something that was asked for is not done yet."""
        self._collect()
        return bool(self._jobs)

    def wait(self) -> None:
        """Return when all that was asked for is done.

        Raises:
            OSError: One could not be written for a reason that will not pass.
        """
        while self._jobs:
            self._jobs.popleft().result()

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """All of a checkpoint, on the CPU; nothing in it is run, whatever `weights_only` says.

        Raises:
            ValueError: It is no checkpoint.
        """
        self.wait()
        return open_checkpoint(Path(path)).whole()

    def teardown(self) -> None:
        """Finish what was asked for; more may follow."""
        try:
            self.wait()
        finally:
            if self._worker is not None:
                self._worker.shutdown()
                self._worker = None


def write_file(path: Path, checkpoint: Mapping[str, Any]) -> int:
    """Write a checkpoint as one file with its SHA-256 beside it; returns its bytes.

    It appears under its name, and replaces what was there, when all of it is on the disk.

    Raises:
        OSError: It cannot be written; what was there still is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part, former = unfinished(path), former_of(path)
    try:
        with Digesting(part) as file:
            torch.save(dict(checkpoint), file)
            file.sync()
        size = part.stat().st_size
        if path.is_dir():  # of a sharded run
            os.replace(path, former)
        put(part, path, file.digest)
        if former.is_dir():
            shutil.rmtree(former)
    finally:
        part.unlink(missing_ok=True)
    return size


def _bytes(count: int) -> str:
    """A number of bytes as people say it."""
    for unit, power in (("GB", 1e9), ("MB", 1e6)):
        if count >= power:
            return f"{count / power:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"
