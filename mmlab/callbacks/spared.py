"""Small files that a run can do without: where the disk is full, it goes on without them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmlab.parallel.checkpoint_files import DISK
from mmlab.runs.directory import put_text

_log = logging.getLogger(__name__)
_told: set[Path] = set()
"""What could not be written last time."""


@contextmanager
def spared(path: Path) -> Iterator[None]:
    """Go on where a disk is full or broken; others than errors of a disk are raised.

    Args:
        path: What is written, for the log, which has it once until it can be written again.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in DISK:
            raise
        if path not in _told:
            _log.warning("%s was not written: %s; the run goes on", path, error.strerror)
        _told.add(path)
    else:
        _told.discard(path)


def spare_text(path: Path, text: str) -> None:
    """Write a file whole or not at all; where the disk is full, the run goes on without it."""
    with spared(path):
        put_text(path, text)
