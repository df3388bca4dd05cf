"""Where each rank of a run is: a small page in the run directory that outlives the process."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import socket
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

Phase = Literal["start", "train", "val", "test", "predict", "save"]
FOLDER = "ranks"
"""Of a run directory."""
SIZE = 64 * 1024
"""Bytes of a page."""
_SLOT = SIZE // 2
_HEAD = struct.Struct("<QQ16s")
"""Number of the note, bytes of its text, digest of number and text."""
_ROOM = _SLOT - _HEAD.size - 512
"""Bytes of a slot for the keys; the others are for the rest of a note."""
_TRIES = 100
_BETWEEN = ",\n"
"""Between two keys, and nowhere else: a line's end inside of a key is escaped."""


class Page(NamedTuple):
    """What a rank noted last."""

    rank: int
    step: int
    """Batches that were done before: of training in all epochs, in evaluation of the pass."""
    phase: Phase
    """What it had begun to do. A batch of training that is done is noted with the phase `start`: of what
    comes next nothing is known yet."""
    keys: tuple[str, ...]
    """Of the samples of its batch, as many as there is room for."""
    more: int
    """Samples whose keys were not noted."""
    time: float
    """In seconds since 1970."""
    host: str
    pid: int
    trained: int = 0
    """Batches of training that were done before, in evaluation too."""

    @property
    def within(self) -> str:
        """In which batch of evaluation it is, to be added to what is said of it."""
        return f" in batch {self.step} of {self.phase}" if self.phase in ("val", "test", "predict") else ""

    def listing(self) -> str:
        """The keys as a person reads them."""
        return ", ".join(self.keys) + (f" and {self.more} more" if self.more else "")


class RankPage:
    """The page on which a rank notes where it is.

    It is memory-mapped: a note is a copy within memory, and the system keeps it when the process is killed.
    Notes go to two slots in turns, each with a number and a digest, so whenever the process dies, and
    whenever a reader looks, one of them is whole.
    """

    def __init__(self, run: Path, rank: int) -> None:
        """Open the page, or go on with that of a process before.

        Args:
            run: The run directory.
            rank: Number of this process.
        """
        path = _path(run, rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            # Reserved now: on a full disk a store into a map that has no room yet would kill the process.
            os.posix_fallocate(file, 0, SIZE)
            self._page = mmap.mmap(file, SIZE)
        except OSError:
            self._page = mmap.mmap(-1, SIZE)  # without the file, which others will miss
        finally:
            os.close(file)
        newest = _newest(self._page[:])
        self._number = 0 if newest is None else newest[0]
        self._who = {"host": socket.gethostname(), "pid": os.getpid()}
        self.rank = rank

    def note(self, step: int, phase: Phase, keys: Sequence[str] = (), *, trained: int | None = None) -> None:
        """Say where this rank is.

        Args:
            step: See :class:`Page`.
            phase: What it begins to do.
            keys: Of the samples of the batch.
            trained: See :class:`Page`; None: as many as `step`.
        """
        trained = step if trained is None else trained
        words, named = json.dumps(keys, separators=(_BETWEEN, ":")), len(keys)
        if len(words) > _ROOM:
            words, named = _cut(words)
        rest: dict[str, Any] = {"step": step, "trained": trained, "phase": phase, "time": time.time()}
        rest["more"] = len(keys) - named
        # The keys are text already, and most of it.
        text = f'{json.dumps(rest | self._who)[:-1]}, "keys": {words}}}'.encode()
        self._number += 1
        start = self._number % 2 * _SLOT
        head = _HEAD.pack(self._number, len(text), _digest(self._number, text))
        self._page[start : start + _HEAD.size + len(text)] = head + text

    def close(self) -> None:
        """Leave the page as it is."""
        self._page.close()


def read_pages(run: Path) -> list[Page]:
    """What the ranks of a run noted last, in their order; those that noted nothing are left out."""
    found = []
    for path in (run / FOLDER).glob("rank*.page"):
        number = path.stem.removeprefix("rank")
        if not number.isdecimal():
            continue
        text = _read(path)
        if text is not None:
            said = json.loads(text)
            found.append(Page(**{**said, "rank": int(number), "keys": tuple(said["keys"])}))
    return sorted(found)


def _path(run: Path, rank: int) -> Path:
    return run / FOLDER / f"rank{rank}.page"


def _digest(number: int, text: bytes) -> bytes:
    return hashlib.blake2b(number.to_bytes(8, "little") + text, digest_size=16).digest()


def _cut(words: str) -> tuple[str, int]:
    """The first keys of a JSON list for which there is room, and their number."""
    end = words.rfind(_BETWEEN, 0, _ROOM)
    return ("[]", 0) if end < 0 else (f"{words[:end]}]", words.count(_BETWEEN, 0, end) + 1)


def _newest(page: bytes) -> tuple[int, bytes] | None:
    """Number and text of the newest note that is whole."""
    whole = []
    for start in range(0, len(page), _SLOT):
        slot = page[start : start + _SLOT]
        if len(slot) < _HEAD.size:
            continue
        number, length, digest = _HEAD.unpack_from(slot)
        text = slot[_HEAD.size : _HEAD.size + length]
        if number > 0 and digest == _digest(number, text):
            whole.append((number, text))
    return max(whole, default=None)


def _read(path: Path) -> bytes | None:
    """The newest note of a file.

    A rank that writes two notes while they are read may have torn both; it is read again then.
    """
    for _ in range(_TRIES):
        page = path.read_bytes()
        newest = _newest(page)
        if newest is not None:
            return newest[1]
        if not any(page):
            return None
        time.sleep(0.001)
    return None
