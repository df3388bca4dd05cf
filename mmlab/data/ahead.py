"""Reading ahead: a thread that opens files before they are read."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence

from mmlab.data.room import NoRoomError

_MOST = 64
"""Files that are kept ready, in each process."""
_PAUSE = 1.0
"""Seconds after which room is looked for again."""


class Ahead:
    """Opens announced shards one after the other, the first first, and keeps them open until they are taken.

    The thread starts with the first announcement and keeps no process from ending. What it cannot open it
    leaves to the reader, which tries again and reports.
    """

    def __init__(self, open_shard: Callable[[int], int]) -> None:
        """Settings.

        Args:
            open_shard: Returns an open file of a shard; raises :class:`NoRoomError` where it would have to
                take room from another that is in use.
        """
        self._open = open_shard
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._wanted: tuple[int, ...] = ()
        self._ready: dict[int, int] = {}
        self._failed: set[int] = set()
        self._closed = False

    def announce(self, shards: Sequence[int]) -> None:
        """Say what will be read soon, the first first; this replaces what was announced before."""
        if self._process != os.getpid():  # in a forked process there is no thread, and its lock may be held
            self._reset()
        with self._changed:
            self._wanted = tuple(dict.fromkeys(shards))[:_MOST]
            self._failed &= set(self._wanted)
            for shard in self._ready.keys() - set(self._wanted):
                os.close(self._ready.pop(shard))
            if self._thread is None and self._wanted:
                self._thread = threading.Thread(target=self._run, name="shards ahead", daemon=True)
                self._thread.start()
            self._changed.notify()

    def take(self, shard: int) -> int | None:
        """The open file of a shard, from now on the caller's, or None where it is not ready."""
        if self._thread is None or self._process != os.getpid():
            return None
        with self._changed:
            self._wanted = tuple(other for other in self._wanted if other != shard)
            return self._ready.pop(shard, None)

    def close(self) -> None:
        """Stop the thread, once it has finished what it fetches, and close what nobody took."""
        if self._process != os.getpid():
            return
        with self._changed:
            self._closed = True
            self._wanted = ()
            while self._ready:
                os.close(self._ready.popitem()[1])
            self._changed.notify()

    def _next(self) -> int | None:
        return next((s for s in self._wanted if s not in self._ready and s not in self._failed), None)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._closed and self._next() is None:
                    self._changed.wait()
                shard = self._next()
            if shard is None:
                return
            try:
                file = self._open(shard)
            except NoRoomError:
                with self._changed:
                    self._changed.wait(_PAUSE)
            except (OSError, ValueError):
                with self._changed:
                    self._failed.add(shard)
            else:
                with self._changed:
                    if shard in self._wanted:
                        self._ready[shard] = file
                    else:
                        os.close(file)
