"""Methods that put peft's layers in the place of a network's own."""

from __future__ import annotations

import re
from collections.abc import Iterable

from peft import PeftConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from mmlab.adaptation.graft import leave_fast_path
from mmlab.adaptation.method import EncoderMethod

ADAPTER = "default"
"""What peft calls the one set of tensors that each layer gets."""
PATIENCE = 10
"""Optimizer steps after which every layer must have run; a network may drop layers at random."""


class InjectedMethod(EncoderMethod):
    """Wraps layers, trains what the wrappers hold, and merges it into the layers' own weights."""

    tensors: frozenset[str]
    """Attributes of peft's layer that hold what is trained."""

    def __init__(self) -> None:
        self._silent: set[str] | None = None
        self._steps = 0

    def inject(
        self, network: nn.Module, config: PeftConfig, paths: Iterable[str], feedforward: Iterable[str] = ()
    ) -> None:
        """Put a peft layer around each of these layers.

        Args:
            network: Changed in place.
            config: Without targets.
            paths: Of the layers.
            feedforward: Those of them whose input IA3 scales.
        """
        # peft takes plain names for endings of paths too; a regular expression must match the whole path.
        config.target_modules = "|".join(re.escape(path) for path in paths)
        config.feedforward_modules = "|".join(re.escape(path) for path in feedforward)
        inject_adapter_in_model(config, network, ADAPTER)
        del network.peft_config
        leave_fast_path(network, BaseTunerLayer)

    def trains(self, name: str, parameter: nn.Parameter) -> bool:
        """What the wrappers hold."""
        return not self.tensors.isdisjoint(name.split("."))

    def fold(self, network: nn.Module) -> None:
        """Merge, and put the plain layers back.

        A network that was held in a lower precision than what was trained comes out in that of the latter:
        in bfloat16 most of a change would be lost. An `nn.TransformerEncoderLayer` keeps to its slow path.
        """
        layers = wrapped(network)
        for layer in layers.values():
            dtype = next(p.dtype for name, p in layer.named_parameters() if self.trains(name, p))
            if layer.get_base_layer().weight.dtype.itemsize < dtype.itemsize:
                for parameter in network.parameters():
                    if parameter.is_floating_point():
                        parameter.data = parameter.data.to(dtype)
        for path, layer in layers.items():
            layer.merge(safe_merge=True)
            network.set_submodule(path, layer.get_base_layer())

    def after_step(self, part: nn.Module, step: int, total_steps: int) -> None:
        """Find layers that the network never runs; they would stay as they were without a word.

        Raises:
            ValueError: One has got no gradient in the first steps, of the run or after a resume.
        """
        if self._silent is None:
            named = part.named_parameters()
            self._silent = {name for name, p in named if self.trains(name, p) and p.requires_grad}
        self._steps += 1
        if self._silent:
            grads = {name: part.get_parameter(name).grad for name in self._silent}
            self._silent = {name for name, grad in grads.items() if grad is None}
            if self._silent and self._steps >= min(PATIENCE, total_steps):
                layers = sorted({_layer(name, self.tensors) for name in self._silent})
                raise ValueError(
                    f"{type(self).__name__.lower()}: {len(layers)} layers had no part in the loss in the "
                    f"first {self._steps} steps ({', '.join(layers[:3])}): the network reads their weights "
                    "instead of calling them, or does not use them; give targets without them"
                )


def wrapped(network: nn.Module) -> dict[str, BaseTunerLayer]:
    """Peft's layers in a network, by module path."""
    return {path: module for path, module in network.named_modules() if isinstance(module, BaseTunerLayer)}


def _layer(name: str, tensors: frozenset[str]) -> str:
    """Path of the layer that a trained tensor belongs to."""
    parts = name.split(".")
    return ".".join(parts[: next(i for i, part in enumerate(parts) if part in tensors)])
