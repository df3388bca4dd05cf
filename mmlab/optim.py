"""Parameter groups and the learning rate over time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    depths: Mapping[str, int] | None = None,
    rates: Mapping[str, float] = MappingProxyType({}),
) -> list[dict[str, Any]]:
    """Split what is trained by whether weight decay applies, by depth and by part, in the order given.

    Biases, the scales and shifts of norms, logit scales and the scales of IA3 are not decayed: all of them
    are vectors, whatever dimensions of size 1 they have besides, or have a name that ends in `bias`. The
    other groups have no `weight_decay` of their own, so the optimizer's applies. A group without parameters
    is left out.

    Args:
        named_parameters: All that is trained at any time of the run, of a module. What is opened later is
            fixed now, but belongs to the optimizer from the start: it has no gradient and is passed over.
        depths: Depth of each by name, see :func:`scale_rates`; None: all of one depth.
        rates: Factor of the learning rate of parts.

    Raises:
        ValueError: If nothing is trained.
    """
    found: dict[tuple[int, str, bool], list[nn.Parameter]] = {}
    for name, parameter in named_parameters:
        vector = parameter.numel() == max(parameter.shape, default=1)
        exempt = vector or name.endswith("bias")
        part = _part(name, rates)
        found.setdefault((0 if depths is None else depths[name], part, exempt), []).append(parameter)
    if not found:
        raise ValueError(
            "no parameter is trained: every one is frozen; let the adaptation train at least one"
        )
    groups: list[dict[str, Any]] = []
    for depth, part, exempt in sorted(found):
        kind: dict[str, Any] = {"name": "no_decay", "weight_decay": 0.0} if exempt else {"name": "decay"}
        groups.append(kind | {"params": found[depth, part, exempt]})
        if part:
            groups[-1] |= {"name": f"{groups[-1]['name']}_{part}", "rate": rates[part]}
        if depths is not None:
            groups[-1] |= {"name": f"{groups[-1]['name']}_{depth}", "depth": depth}
    return groups


def _part(name: str, parts: Iterable[str]) -> str:
    """The longest of the parts that a parameter belongs to; empty where it is in none."""
    return max((part for part in parts if f".{part}." in f".{name}."), key=len, default="")


def scale_rates(optimizer: Optimizer, layer_decay: float) -> None:
    """Multiply the learning rate of each group by `layer_decay ** depth`, and by the factor of its part.

    So what lies near the input, which is most general, moves least (Clark et al. 2020, arXiv:2003.10555,
    section 3.1; BEiT: Bao et al. 2022, arXiv:2106.08254). Both count one more for each block than
    :func:`mmlab.models.depth.network_depths` does: here the top block moves as fast as what follows it.

    Args:
        optimizer: Over groups that :func:`parameter_groups` made, before a schedule reads its rates.
        layer_decay: In (0, 1].
    """
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * layer_decay ** group.get("depth", 0) * group.get("rate", 1.0)


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
    """An optimizer and its schedule.

    Raises:
        ValueError: If a setting is out of its range.
    """

    optimizer: Callable[[Iterable[Any]], Optimizer]
    """Any torch optimizer; its weight decay applies to matrices only, not to biases, norms and scales."""
    schedule: WarmupCosine = WarmupCosine()
    """Learning rate over the run."""
    layer_decay: float = 1.0
    """Factor of the learning rate from each block of an encoder to the one below it; 1: one rate for all.
    Between 0.65 and 0.9 is usual where pretrained encoders are trained whole."""
    rates: Mapping[str, float] = field(default_factory=dict)
    """Factor of the learning rate by part of the model, as `{image.encoder: 0.1}`: what is pretrained and
    trained whole wants a tenth of what new parts and LoRA do."""

    def __post_init__(self) -> None:
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay={self.layer_decay}: it is a factor above 0, at most 1")
        if any(not rate > 0 for rate in self.rates.values()):
            raise ValueError(
                f"rates={dict(self.rates)}: they are factors above 0; freeze what shall not move"
            )

    def build_optimizer(
        self, named_parameters: Iterable[tuple[str, nn.Parameter]], *, depths: Mapping[str, int] | None = None
    ) -> Optimizer:
        """The optimizer over what is trained; see :func:`parameter_groups` and :func:`scale_rates`.

        Args:
            named_parameters: All that is trained at any time of the run.
            depths: Depth of each parameter by name (:func:`mmlab.models.depth.depths`); asked for where
                `layer_decay` is below 1.
        """
        layered = self.layer_decay < 1
        assert depths is not None or not layered, "layer_decay without depths"
        optimizer = self.optimizer(
            parameter_groups(named_parameters, depths=depths if layered else None, rates=self.rates)
        )
        scale_rates(optimizer, self.layer_decay)
        return optimizer

    def check_parts(self, names: Iterable[str]) -> None:
        """Raise ValueError for a part that none of these parameters, trained or not, belongs to."""
        known = list(names)
        for part in self.rates:
            if not any(_part(name, [part]) for name in known):
                raise ValueError(
                    f"optimization.rates: the model has no part {part!r}: name one by its path, such as "
                    "image.encoder, or set --model.init_args.optimization.rates {}"
                )

    def build_schedule(self, optimizer: Optimizer, total_steps: int) -> LambdaLR:
        """The schedule of that optimizer over the whole run."""
        return self.schedule(optimizer, total_steps)
