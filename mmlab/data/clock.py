"""Signals whose steps have times of their own, brought to a clock that others have too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Shaped

from mmlab.data.decode import BrokenMember
from mmlab.data.fields import read_field


@dataclass(frozen=True)
class Clock:
    """Evenly spread moments of a sample, at which every modality that has this clock is read.

    Moment t of T is at (t + 1/2) / T of the sample's length. Between two steps of a signal it is linear;
    before its first and after its last it is that one (`numpy.interp`). Of a signal with more than T steps a
    moment is the mean over those from t / T to (t + 1) / T, where there are any: between two of them it would
    say nothing of the others. What is outside of the sample counts for its first or last moment.
    """

    times: str
    """Extension of the array that says when each step is: its middle, [steps], or its beginning and end,
    [steps, 2], in seconds from the beginning of the sample, ascending."""
    ticks: int
    """T, the same for all that are to be aligned."""
    seconds: str
    """The field that holds the sample's length in seconds, such as `json.seconds`."""

    def __post_init__(self) -> None:
        if self.ticks < 1:
            raise ValueError(f"clock.ticks={self.ticks}: a clock has one at least")

    def read_length(self, members: Mapping[str, bytes]) -> float:
        """How long the sample is.

        Raises:
            BrokenMember: `no length in seconds`.
        """
        found = read_field(members, self.seconds)
        try:
            seconds = float(found[0])
        except (IndexError, TypeError, ValueError, OverflowError):
            seconds = 0.0
        if not 0 < seconds < float("inf"):
            raise BrokenMember("no length in seconds")
        return seconds

    def resample(
        self,
        array: Float32[np.ndarray, "steps channels"],
        times: Shaped[np.ndarray, "times _"],
        seconds: float,
    ) -> Float32[np.ndarray, "ticks channels"]:
        """The signal at the moments of this clock.

        Args:
            array: Its steps.
            times: When they are.
            seconds: Length of the sample.

        Raises:
            BrokenMember: `times of other steps`, `times not finite`, `times do not ascend`.
        """
        if len(times) != len(array):
            raise BrokenMember("times of other steps")
        middle: Float64[np.ndarray, " steps"] = times.astype(np.float64).mean(axis=1)
        if not np.isfinite(middle).all():
            raise BrokenMember("times not finite")
        if (np.diff(middle) < 0).any():
            raise BrokenMember("times do not ascend")
        tick = (np.arange(self.ticks) + 0.5) / self.ticks * seconds
        columns = [np.interp(tick, middle, column) for column in array.T]
        found = np.stack(columns, axis=1)
        if len(array) > self.ticks:
            of = np.clip(middle / seconds * self.ticks, 0, self.ticks - 1).astype(np.int64)
            count = np.bincount(of, minlength=self.ticks)[:, None]
            total = np.zeros_like(found)
            np.add.at(total, of, array)
            found = np.where(count > 0, total / np.maximum(count, 1), found)
        return found.astype(np.float32)
