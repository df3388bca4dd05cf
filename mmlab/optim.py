"""Parameter groups and the learning rate over time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def parameter_groups(named_parameters: Iterable[tuple[str, nn.Parameter]]) -> list[dict[str, Any]]:
    """Split what is trained by whether weight decay applies, in the order given.

    Biases, the scales and shifts of norms, and logit scales are not decayed: all of them have fewer than two
    dimensions or a name that ends in `bias`. The other group has no `weight_decay` of its own, so the
    optimizer's applies. A group without parameters is left out.

    Args:
        named_parameters: Of a module; frozen ones are left out.

    Raises:
        ValueError: If nothing is trained.
    """
    decay: list[nn.Parameter] = []
    no_decay: list[nn.Parameter] = []
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            exempt = parameter.ndim < 2 or name.endswith("bias")
            (no_decay if exempt else decay).append(parameter)
    if not decay and not no_decay:
        raise ValueError(
            "no parameter is trained: every one is frozen; let the adaptation train at least one"
        )
    groups: list[dict[str, Any]] = [
        {"name": "decay", "params": decay},
        {"name": "no_decay", "params": no_decay, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def warmup_cosine(step: int, *, warmup_steps: int, total_steps: int, min_ratio: float) -> float:
    """Learning rate at a step, as a share of the highest.

    It rises linearly to 1 at `warmup_steps`, the first step being above 0 already, then falls as half a
    cosine (Loshchilov and Hutter 2017, arXiv:1608.03983, eq. 5) to `min_ratio` at `total_steps`, and stays.

    Args:
        step: From 0.
        warmup_steps: If not below `total_steps`, the highest rate is never reached.
        total_steps: Optimizer steps of the run.
        min_ratio: In [0, 1].
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if step >= total_steps:
        return min_ratio
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return min_ratio + (1 - min_ratio) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class WarmupCosine:
    """Linear warm-up, then half a cosine; see :func:`warmup_cosine`.

    Raises:
        ValueError: If a setting is out of its range.
    """

    warmup: int | float = 0.05
    """Steps if a whole number, a share of all steps if a fraction below 1."""
    min_ratio: float = 0.0
    """Last learning rate, as a share of the highest."""

    def __post_init__(self) -> None:
        if self.warmup < 0 or (isinstance(self.warmup, float) and self.warmup >= 1):
            raise ValueError(
                f"warmup={self.warmup}: a fraction is the share of all steps and lies in [0, 1); "
                "a number of steps is a whole number from 0"
            )
        if not 0 <= self.min_ratio <= 1:
            raise ValueError(f"min_ratio={self.min_ratio}: it must lie in [0, 1]")

    def __call__(self, optimizer: Optimizer, total_steps: int) -> LambdaLR:
        """Schedule an optimizer's learning rates; to be stepped after each optimizer step.

        Raises:
            ValueError: If there is no step to schedule.
        """
        if total_steps < 1:
            raise ValueError(f"total_steps={total_steps}: it must be at least 1; set max_steps or max_epochs")
        warmup_steps = self.warmup if isinstance(self.warmup, int) else round(self.warmup * total_steps)
        ratio = partial(
            warmup_cosine, warmup_steps=warmup_steps, total_steps=total_steps, min_ratio=self.min_ratio
        )
        return LambdaLR(optimizer, ratio)


@dataclass(frozen=True)
class Optimization:
    """An optimizer and its schedule."""

    optimizer: Callable[[Iterable[Any]], Optimizer]
    """Any torch optimizer; its weight decay applies to matrices only, not to biases, norms and scales."""
    schedule: WarmupCosine = WarmupCosine()
    """Learning rate over the run."""

    def build_optimizer(self, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> Optimizer:
        """The optimizer over what is trained; see :func:`parameter_groups`."""
        return self.optimizer(parameter_groups(named_parameters))

    def build_schedule(self, optimizer: Optimizer, total_steps: int) -> LambdaLR:
        """The schedule of that optimizer over the whole run."""
        return self.schedule(optimizer, total_steps)
