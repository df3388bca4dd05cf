"""Disk space for fetched shards: a bound that all processes of a node keep together."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from mmlab.assets.fetch import FULL, FetchError

_STEP = 2**20
"""Bytes by which a download of unknown size claims room, at least."""
_WAIT = 0.1
"""Seconds between two looks for room that other downloads take."""


class NoRoomError(Exception):
    """There is no room that could be had without taking it from shards that are needed."""


class Room:
    """A folder of shards that stays under a number of bytes.

    It holds `NAME.tar`, fetched and checked; `NAME.part`, being fetched; `NAME.claim`, the bytes that a
    download may take. A shard that is open, or about to be read, has a shared lock on its file; others make
    room first, those used longest ago before the rest. Locks end with their process: nothing that was killed
    blocks.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        """Settings.

        Args:
            folder: Where shards lie; made where it is missing.
            limit: Bytes that they may take, downloads under way included.
        """
        self.folder, self.limit = folder, limit
        (folder / "locks").mkdir(parents=True, exist_ok=True)

    def file(self, name: str, kind: str = "tar") -> Path:
        """Where a shard lies, or its `part` or `claim`."""
        return self.folder / f"{name}.{kind}"

    def lock(self, name: str) -> FileLock:
        """The lock that whoever fetches a shard holds."""
        return FileLock(self.folder / "locks" / f"{name}.lock")

    def open(self, path: Path, size: int) -> int | None:
        """Open a shard and mark it as in use, or None where it is not there; closing ends the use."""
        try:
            file = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        fcntl.flock(file, fcntl.LOCK_SH)
        now = os.fstat(file)
        if now.st_nlink > 0 and now.st_size == size:
            with contextlib.suppress(PermissionError):  # another user's
                os.utime(file)
            return file
        if now.st_nlink > 0:  # left by a power failure, or of another index
            path.unlink(missing_ok=True)
        os.close(file)
        return None

    @contextmanager
    def space(self, name: str, *, insist: bool) -> Iterator[Callable[[int, int | None], None]]:
        """Room for one download, whose shard lock the caller holds; ends with the part removed or renamed.

        Args:
            name: Of the shard.
            insist: Whether to wait for room, and to take it from shards that are in use if there is no other.

        Yields:
            A function to call with the size that the part is about to have, and the size that it will have in
            the end, or None. It raises NoRoomError, and FetchError where the shard is larger than the bound.
        """
        claimed = 0
        with ExitStack() as stack:
            stack.callback(self._release, name)
            self._release(name)  # what a killed process left
            alone = False

            def grow(size: int, total: int | None) -> None:
                nonlocal claimed, alone
                if max(size, total or 0) <= claimed:
                    return
                if (total is None or claimed > 0) and not alone:
                    # Two that have room and want more could wait for each other's for ever.
                    self.file(name, "claim").unlink(missing_ok=True)
                    try:
                        stack.enter_context(self.lock("growing").acquire(timeout=-1 if insist else 0))
                    except Timeout:
                        raise NoRoomError from None
                    alone = True
                step = max(_STEP, size // 8) if total is None else 0
                wanted = max(size, total or 0, min(size + step, self.limit))
                self._claim(name, wanted, insist)
                claimed = wanted

            yield grow

    def evict(self) -> bool:
        """Remove the shard that was used longest ago and is not in use; says whether there was one."""
        with self.lock("room"):
            return self._evict_one()

    def _claim(self, name: str, size: int, insist: bool) -> None:
        if size > self.limit:
            raise FetchError(
                f"{name} takes {size} bytes or more, but the cache {self.folder} may hold {self.limit}.",
                "Raise remote.cache_bytes to several times the largest shard, or write smaller shards.",
            )
        while True:
            with self.lock("room"):
                if self._make_room(name, size, insist):
                    self._write_claim(name, size)
                    return
            if not insist:
                raise NoRoomError
            time.sleep(_WAIT)

    def _write_claim(self, name: str, size: int) -> None:
        while True:
            try:
                self.file(name, "claim").write_text(str(size))
                return
            except OSError as error:
                if error.errno not in FULL or not self._evict_one():
                    raise

    def _evict_one(self) -> bool:
        return any(_drop(path, in_use_too=False) for _, _, path in self._shards())

    def _make_room(self, name: str, size: int, in_use_too: bool) -> bool:
        """Evict until `size` bytes fit beside the rest; says whether they do."""
        shards = self._shards()
        used = size + sum(count for _, count, _ in shards) + self._claimed_by_others(name)
        for force in (False, True) if in_use_too else (False,):
            for shard in tuple(shards):
                if used > self.limit and _drop(shard[2], in_use_too=force):
                    used -= shard[1]
                    shards.remove(shard)
        return used <= self.limit

    def _shards(self) -> list[tuple[int, int, Path]]:
        """Time of last use, size and path of each shard, those used longest ago first."""
        found = []
        for path in self.folder.glob("*.tar"):
            with contextlib.suppress(FileNotFoundError):  # a bad one may go at any time
                now = path.stat()
                found.append((now.st_mtime_ns, now.st_size, path))
        return sorted(found)

    def _claimed_by_others(self, name: str) -> int:
        total = 0
        downloads = {path.stem for kind in ("part", "claim") for path in self.folder.glob(f"*.{kind}")}
        for other in downloads - {name}:
            try:
                with self.lock(other).acquire(timeout=0):
                    self._release(other)  # whoever fetched it is gone
            except Timeout:
                with contextlib.suppress(FileNotFoundError):
                    total += int(self.file(other, "claim").read_text() or 0)
        return total

    def _release(self, name: str) -> None:
        self.file(name, "part").unlink(missing_ok=True)
        self.file(name, "claim").unlink(missing_ok=True)


def _drop(path: Path, *, in_use_too: bool) -> bool:
    """Remove a shard unless it is in use; whoever has it open goes on reading it."""
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not in_use_too:
            return False
    else:
        path.unlink(missing_ok=True)  # under the lock: nobody begins to use what goes
        return True
    finally:
        os.close(file)
    path.unlink(missing_ok=True)
    return True
