"""What training steps did, and in which time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from jaxtyping import Int64
from torch import Tensor

from mmlab.callbacks.phases import PHASES

_COMMUNICATING = ("backward", "forward", "optimizer")
"""Phases that exchange something, the one that waits most for it first."""


class Step(NamedTuple):
    """One batch, forward and backward, and the step of the optimizer where it made one."""

    samples: int
    tokens: Int64[Tensor, ""] | None
    """Valid ones of text, on the device; None where the run reads no text."""
    flops: int | None
    """Operations of the model; None where they are not known."""
    seconds: Mapping[str, float]
    """Of each phase."""


class Speed:
    """Steps of one rank, added up."""

    def __init__(self) -> None:
        self.steps = 0
        self.samples = 0
        self.tokens: Int64[Tensor, ""] | None = None
        self.flops = 0
        self.uncounted = 0
        """Steps whose operations are not known."""
        self.phases = dict.fromkeys(PHASES, 0.0)

    def add(self, step: Step) -> None:
        """Count a step."""
        self.steps += 1
        self.samples += step.samples
        if step.tokens is not None:
            self.tokens = step.tokens if self.tokens is None else self.tokens + step.tokens
        self.flops += step.flops or 0
        self.uncounted += step.flops is None
        for phase, seconds in step.seconds.items():
            self.phases[phase] += seconds

    @property
    def seconds(self) -> float:
        """Of all phases."""
        return sum(self.phases.values())

    @property
    def flops_per_second(self) -> float | None:
        """Of this rank's device; None where some step's are not known."""
        return None if self.uncounted > 0 or self.steps == 0 else self.flops / self.seconds

    def shares(self, communication: float = 0.0) -> dict[str, float]:
        """Shares of the time.

        Args:
            communication: Share that is taken off the phases that it is part of: off backward, where
                gradients are exchanged, as far as that goes, then off forward and the optimizer.
        """
        shares = {phase: seconds / self.seconds for phase, seconds in self.phases.items()}
        found = 0.0
        for phase in _COMMUNICATING:
            taken = min(shares[phase], communication - found)
            shares[phase] -= taken
            found += taken
        return {**shares, "communication": found}

    def numbers(self, *, ranks: int, communication: float, peak: float | None) -> dict[str, float]:
        """What is logged, by name; `tflops` and `mfu` are of one device.

        Args:
            ranks: Processes that do the same beside this one.
            communication: See :meth:`shares`.
            peak: Operations a second that the device can do; None: not asked for.
        """
        found = {"samples_per_second": ranks * self.samples / self.seconds}
        if self.tokens is not None:
            found["tokens_per_second"] = ranks * int(self.tokens) / self.seconds
        if self.flops_per_second is not None:
            found["tflops"] = self.flops_per_second / 1e12
            if peak is not None:
                found["mfu"] = self.flops_per_second / peak
        shares = self.shares(communication)
        found["data_wait"] = shares["data"]
        return found | {f"time/{phase}": share for phase, share in shares.items()}
