"""Files that are complete when they have their name, and the SHA-256 beside a checkpoint that proves it."""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import socket
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

SUMS = "SHA256SUMS"
"""File of a folder with the digests of its other files; it is written last."""
PART = ".part"
"""Ending of what is not complete."""
_LINE = re.compile(r"([0-9a-f]{64}) [ *]([^/\n]+)")
_THREADS = 4


class Digesting(io.BufferedWriter):
    """A new file whose SHA-256 is taken while it is written, from front to back.

    A write that fails is remembered, and raised when the file is flushed or closed: the writer of torch
    answers an error within a write with another one that does not say what it was.

    Args:
        path: What stood there is lost.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "wb"), 1 << 20)
        self._sha = hashlib.sha256()
        self._failure: OSError | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of all that was written, in hexadecimal."""
        return self._sha.hexdigest()

    def write(self, data: Any, /) -> int:
        """Append bytes."""
        if self._failure is None:
            try:
                super().write(data)
            except OSError as error:
                self._failure = error
            self._sha.update(data)
        return memoryview(data).nbytes

    def flush(self) -> None:
        """Hand all to the system, or raise OSError for what could not be written."""
        if self._failure is not None:
            raise self._failure
        super().flush()

    def sync(self) -> None:
        """Have all on the disk."""
        self.flush()
        os.fsync(self.fileno())


def unfinished(path: Path) -> Path:
    """Where a file is written until it is complete: beside it, hidden, with this process in its name."""
    return path.with_name(f".{path.name}.{os.getpid()}@{socket.gethostname()}{PART}")


def beside(path: Path) -> Path:
    """Where the digest of a file stands."""
    return path.with_name(f"{path.name}.sha256")


def put(part: Path, path: Path, digest: str) -> None:
    """Give a complete file its name; whenever this is cut off, the digests there fit what stands there.

    Two files cannot be replaced at once. So for a moment there are two digests, of the old file and of the
    new one.

    Args:
        part: The file, on the disk already.
        path: Its name; what has this name is replaced.
        digest: Its SHA-256.

    Raises:
        OSError: Nothing has changed.
    """
    former = recorded(path)
    # An old file without digest must not be measured by the new one's.
    if former or not path.exists():
        _write_digests(path, [digest, *former])
    os.replace(part, path)
    sync_folder(path.parent)
    with suppress(OSError):  # the file is there, and either its digest is among these or there is none
        _write_digests(path, [digest])


def _write_digests(path: Path, digests: Iterable[str]) -> None:
    write_text(beside(path), "".join(f"{digest}  {path.name}\n" for digest in digests))


def write_text(path: Path, text: str) -> None:
    """Write a small file as a whole, and have it on the disk."""
    part = unfinished(path)
    try:
        with Digesting(part) as file:
            file.write(text.encode())
            file.sync()
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_sums(folder: Path, digests: Mapping[str, str]) -> None:
    """Write the digests of all files of a folder into it, which says that it is complete."""
    write_text(folder / SUMS, "".join(f"{digests[name]}  {name}\n" for name in sorted(digests)))


def sync_folder(folder: Path) -> None:
    """Have the names of a folder on the disk."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def recorded(path: Path) -> list[str]:
    """Digests that stand beside a file; empty where there are none that can be read."""
    try:
        lines = beside(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return [match[1] for line in lines if (match := _LINE.fullmatch(line)) is not None]


def proven(path: Path) -> bool | None:
    """Whether a file or folder is what was written; None where no digest says what that was.

    Raises:
        OSError: It cannot be read.
    """
    if path.is_dir():
        return _folder_proven(path)
    digests = recorded(path)
    return _digest(path) in digests if digests else None


def _folder_proven(folder: Path) -> bool | None:
    sums = folder / SUMS
    if not sums.is_file():
        return None
    lines = sums.read_text(encoding="utf-8", errors="replace").splitlines()
    said = [_LINE.fullmatch(line) for line in lines]
    wanted = {match[2]: match[1] for match in said if match is not None}
    own = {file.name for file in folder.iterdir()} - {SUMS}
    if None in said or not wanted or wanted.keys() != own:
        return False
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(_digest, (folder / name for name in wanted))
        return all(one == other for one, other in zip(found, wanted.values(), strict=True))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def rename(path: Path, name: str) -> Path:
    """Give a checkpoint another name in its folder, its digest too; what has that name is lost."""
    target = path.with_name(name)
    remove(target)
    os.replace(path, target)
    with suppress(FileNotFoundError):
        os.replace(beside(path), beside(target))
    return target


def remove(path: Path) -> None:
    """Remove a file or folder and the digest beside it, where they are."""
    if path.is_dir() and not path.is_symlink():
        # Under its name it is whole or not there.
        going = path.with_name(f".{path.name}.gone{PART}")
        shutil.rmtree(going, ignore_errors=True)
        os.replace(path, going)
        shutil.rmtree(going)
    else:
        path.unlink(missing_ok=True)
    beside(path).unlink(missing_ok=True)
