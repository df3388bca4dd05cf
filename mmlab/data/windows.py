"""Windows of the stream that training leaves out: what came before weights that were no numbers any more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Window(NamedTuple):
    """Global batches that are left out."""

    step: int
    """Of training, before which they would have come."""
    length: int
    """How many."""


def stream_step(step: int, windows: Sequence[Window]) -> int:
    """Which global batch of the stream a step of training takes: further on by all windows before it."""
    return step + sum(window.length for window in windows if window.step <= step)


def continued(own: Sequence[Window], saved: Sequence[Window]) -> list[Window]:
    """The windows of a run that goes on.

    Args:
        own: Those that the run's directory knows of, in the order in which they were left out.
        saved: Those of the checkpoint that it goes on from.

    Returns:
        All that the directory knows, if the checkpoint is of the same history: windows may have been added
        after it was saved. Those of the checkpoint, if it is of another.
    """
    same = list(own[: len(saved)]) == list(saved)
    return list(own) if same else list(saved)
