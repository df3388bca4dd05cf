"""What a way of adapting a network is."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from mmlab.models.network import Added, Network


class Method(ABC):
    """How one part of a model is trained. The policy makes a copy for each part and applies it first."""

    merges: bool = True
    """Whether :meth:`merge` leaves the part as it was built, with nothing of this method in it."""

    def apply(self, part: nn.Module) -> nn.Module:
        """Prepare a part, before it is sharded; returns what stands in its place from now on."""
        return part

    @abstractmethod
    def trainable(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether a parameter is trained; `name` starts at the part. What was built fixed stays so."""

    def stage(self, name: str) -> int:
        """From which stage of the training on a parameter is trained; 0: from the start."""
        return 0

    def merge(self, part: nn.Module) -> nn.Module:
        """Fold what `apply` added into the weights, where that gives the same function; see `merges`."""
        return part

    def penalty(self, part: nn.Module) -> Tensor | None:
        """What is added to the loss, or None."""
        return None

    def after_step(self, part: nn.Module, step: int, total_steps: int) -> None:  # noqa: B027  most need none
        """Called after each optimizer step, while the gradients still stand.

        Args:
            part: What `apply` returned.
            step: Optimizer steps done.
            total_steps: Of the whole run.
        """


class EncoderMethod(Method):
    """Adapts the encoders of a part; what follows them (pooling, projection) is trained whole.

    What follows starts at random, so it would be of no use fixed; nor would what is
    :class:`~mmlab.models.network.Added` to an encoder. A part that holds no encoder is taken as
    one network, and adapted as an encoder would be.
    """

    def apply(self, part: nn.Module) -> nn.Module:
        """Adapt every encoder, in place."""
        found = [name for name, module in part.named_modules() if isinstance(module, Network)]
        self.encoders = found or [""]
        self.added = [name for name, module in part.named_modules() if name and isinstance(module, Added)]
        added = [p for name in self.added for p in part.get_submodule(name).parameters() if p.requires_grad]
        for name in self.encoders:
            self.adapt(part.get_submodule(name))
        for parameter in added:
            parameter.requires_grad_(True)  # peft fixes all but its own
        return part

    def adapt(self, network: nn.Module) -> None:
        """Change an encoder in place; most methods add modules, some nothing.

        Raises:
            ValueError: The method cannot be used with this network.
        """

    @abstractmethod
    def trains(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether a parameter of an encoder is trained; `name` starts at the encoder."""

    def trainable(self, name: str, parameter: nn.Parameter) -> bool:
        """What is in no encoder, what is added to one, and what the method trains inside."""
        if any(within(name, path) for path in self.added):
            return True
        for encoder in self.encoders:
            if within(name, encoder):
                return self.trains(name.removeprefix(encoder).lstrip("."), parameter)
        return True

    def merge(self, part: nn.Module) -> nn.Module:
        """Fold, encoder by encoder."""
        for name in self.encoders:
            self.fold(part.get_submodule(name))
        return part

    def fold(self, network: nn.Module) -> None:
        """Undo in place what `adapt` changed, with the weights that give the same function."""


def within(name: str, path: str) -> bool:
    """Whether a dotted name is a module path or stands below it; all stand below the empty one."""
    return path == "" or name == path or name.startswith(f"{path}.")
