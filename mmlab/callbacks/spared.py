"""Small files that a run can do without: where the disk is full, it goes on without them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmlab.parallel.checkpoint_files import DISK

_log = logging.getLogger(__name__)


@contextmanager
def spared(path: Path) -> Iterator[None]:
    """Go on where a disk is full or broken; others than errors of a disk are raised.

    Args:
        path: What is written, for the log.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in DISK:
            raise
        _log.warning("%s was not written: %s; the run goes on", path, error.strerror)
