"""What every pretrained network inside a model is, as those see it who adapt, shard or recompute it."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Network(nn.Module, ABC):
    """A network that comes with weights of its own: an encoder, a language model.

    Adaptation, layer-wise learning rates, recomputing and compiling take each for one whole, find its blocks
    from its structure, and leave what stands around it (projections, heads) alone.
    """

    packing = False
    """Whether it runs samples as one sequence, without padding."""

    @abstractmethod
    def try_out(self) -> None:
        """Run on the smallest input that it takes, so that hooks see what it calls."""


class Added(nn.Module):
    """A part of a network that its pretrained weights do not hold: every method of adaptation trains it.

    It changes nothing at the start, and fixed as it is then it would be of no use.
    """


def pretrained_state(network: nn.Module) -> dict[str, Tensor]:
    """The state dict of a network without what is :class:`Added` to it."""
    added = [f"{path}." for path, module in network.named_modules() if path and isinstance(module, Added)]
    return {name: value for name, value in network.state_dict().items() if not name.startswith(tuple(added))}


class FollowsSteps(ABC):
    """A part of a model that changes between the steps of the optimizer, and within none."""

    @abstractmethod
    def after_step(self) -> None:
        """Change; called on every rank once the weights have moved."""
