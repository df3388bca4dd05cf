"""A checkpoint as a folder to which each rank writes its part, with the digests of all parts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save

from mmlab import collectives
from mmlab.parallel.digests import Digesting, beside, remove, sync_folder, write_sums
from mmlab.parallel.stored import REST, finish_rename, former_of, part_of, parted


class _Files(FileSystem):
    """Takes the digests of files as they are written."""

    def __init__(self) -> None:
        self.digests: dict[str, str] = {}

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[IO[bytes]]:  # type: ignore[override]
        """Open a file."""
        if mode != "wb":
            with Path(path).open(mode) as plain:
                yield plain
            return
        with Digesting(Path(path)) as stream:
            yield stream
        self.digests[Path(path).name] = stream.digest

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        """Give a file its name."""
        os.replace(path, new_path)
        self.digests[Path(new_path).name] = self.digests.pop(Path(path).name)


def write_folder(path: Path, checkpoint: Mapping[str, Any]) -> int:
    """Write a checkpoint as a folder, each rank its part; every rank must call this. Returns its bytes.

    The folder appears under its name, and replaces what was there, when all of it is on the disk. Each rank
    takes the SHA-256 of its own files while it writes them.

    Raises:
        OSError: On all ranks: one of them cannot write. What was there still is.
    """
    tensors, rest = parted(checkpoint)
    part, first = part_of(path), collectives.rank() == 0
    writer, files = FileSystemWriter(part), _Files()
    writer.fs = files

    def begin() -> None:
        if first:
            path.parent.mkdir(parents=True, exist_ok=True)
            finish_rename(path)
            if part.exists():
                remove(part)

    def finish() -> None:
        if first:
            with Digesting(part / REST) as file:
                torch.save(rest, file)
                file.sync()
            write_sums(
                part, {name: sum for one in digests for name, sum in one.items()} | {REST: file.digest}
            )
            sizes.append(sum(each.stat().st_size for each in part.iterdir()))
            _put(part, path)

    sizes: list[int] = []
    try:
        _together(begin)
        try:
            save(tensors, storage_writer=writer, process_group=collectives.cpu_group())
        except CheckpointException as error:  # raised on all ranks
            failures = [failure for failure, _ in error.failures.values()]
            if not all(isinstance(failure, OSError) for failure in failures):
                raise
            raise failures[0] from None
        digests = collectives.gather_objects(files.digests)
        _together(finish)
    except OSError:
        if first:
            with suppress(OSError):
                remove(part)
        raise
    return int(collectives.host_total([sum(sizes)])[0])


def _put(part: Path, path: Path) -> None:
    """Give a complete folder its name. Cut off between two steps, what is there is found all the same."""
    former = former_of(path)
    if former.exists():
        remove(former)
    if path.exists():
        os.replace(path, former)
    os.replace(part, path)
    sync_folder(path.parent)
    with suppress(OSError):  # what is left is cleared away when a run goes on
        beside(path).unlink(missing_ok=True)  # of a file that had this name
        remove(former)


def _together(action: Callable[[], None]) -> None:
    """Do something on all ranks; if it fails on one with an OSError, all raise it."""
    failure = None
    try:
        action()
    except OSError as error:
        failure = error
    failures = [each for each in collectives.gather_objects(failure) if each is not None]
    if failures:
        raise failures[0]
