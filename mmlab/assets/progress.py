"""A progress bar on the terminal, or one plain line where standard error is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


@contextmanager
def progress(title: str, *, total: int | None, in_bytes: bool) -> Iterator[Callable[[int], None]]:
    """Show how far a long job is.

    Args:
        title: What is being done.
        total: Where the job ends, or None where nobody knows.
        in_bytes: Count bytes (with their speed) instead of things.

    Yields:
        A function to call with how much of the total is done now.
    """
    if not sys.stderr.isatty():
        print(title, file=sys.stderr, flush=True)
        yield lambda done: None
        return
    counts: tuple[ProgressColumn, ...] = (
        (DownloadColumn(), TransferSpeedColumn()) if in_bytes else (MofNCompleteColumn(),)
    )
    columns = (TextColumn("{task.description}"), BarColumn(), *counts, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done: bar.update(task, completed=done)
