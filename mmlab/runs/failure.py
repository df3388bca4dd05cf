"""The end of a run that went wrong by itself: no bad input, and no fault of the machine."""

from __future__ import annotations


class RunFailedError(RuntimeError):
    """What is said to the user in a line or two; the exit status is 1."""
