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


class Skips(list[Window]):
    """All windows of a run, in the order in which training meets them."""

    def know(self, windows: Sequence[Sequence[int]]) -> None:
        """Take these, given as pairs, for all that there are."""
        self[:] = [Window(*window) for window in windows]

    def leave_out(self, start: int, stop: int) -> None:
        """Leave out what some steps of training took, which are trained anew.

        Args:
            start: The first of the steps.
            stop: The one behind the last.
        """
        length = stream_step(stop - 1, self) + 1 - stream_step(start, self)
        before = [window for window in self if window.step <= start]
        # Those between are within the new window; later ones are met so many steps earlier.
        after = [Window(step - (stop - start), length) for step, length in self if step >= stop]
        self[:] = [*before, Window(start, length), *after]

    def go_on(self, saved: Sequence[Sequence[int]], step: int) -> None:
        """Go on from a checkpoint.

        Where it is of the same history all windows stay: some may have been added after it was saved. Where
        it is of another, its own count.

        Args:
            saved: The windows that it knows.
            step: At which it was saved.
        """
        theirs = [Window(*window) for window in saved]
        met = [window for window in theirs if window.step <= step]
        if [window for window in self if window.step <= step][: len(met)] != met:
            self[:] = theirs
