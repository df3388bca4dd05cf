"""Adding to what a module computes, in place: its class gives way to one that also does something else."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn


class Graft(nn.Module):
    """What a subclass does in `forward` is done around the forward pass of the module that it is grafted on.

    The module stays what it was to all who look at it: its attributes, the names of its parameters, its
    class for `isinstance`. It can be copied, pickled, compiled and sharded.
    """

    _parts: tuple[type[nn.Module], type[Graft]]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Name the two classes: the one made of them cannot be imported."""
        reduced: Any = super().__reduce_ex__(protocol)
        return _revive, self._parts, *reduced[2:]


def graft(module: nn.Module, kind: type[Graft], **members: object) -> None:
    """Let a module do what `kind` does around its forward pass.

    Args:
        module: Changed in place.
        kind: Its `super().forward` is the module's own.
        members: Modules, parameters and other attributes that `kind` reads from `self`.
    """
    for name, member in members.items():
        assert not hasattr(module, name), f"{type(module).__name__} has an attribute {name} of its own"
        setattr(module, name, member)
    classes: Any = (type(module), kind)
    module.__class__ = _joined(*classes)


def leave_fast_path(network: nn.Module, kind: type) -> None:
    """Let torch's own transformer layers call the modules inside them, where one is of a kind.

    In evaluation their fast path hands the weights to one fused operation, past what stands around them.
    """
    for module in network.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and _holds(module, kind):
            module.activation_relu_or_gelu = 0
        if isinstance(module, nn.TransformerEncoder) and _holds(module, kind):
            module.use_nested_tensor = False


def _holds(module: nn.Module, kind: type) -> bool:
    return any(isinstance(inner, kind) for inner in module.modules())


@cache
def _joined(own: Any, kind: Any) -> Any:
    """One class for each pair, so that modules of one class stay so."""
    names = {"__module__": own.__module__, "__qualname__": own.__qualname__, "__doc__": own.__doc__}
    return type(own.__name__, (kind, own), {**names, "_parts": (own, kind)})


def _revive(own: Any, kind: Any) -> Any:
    """An empty module, to be filled by whoever copies or unpickles."""
    joined = _joined(own, kind)
    return joined.__new__(joined)
