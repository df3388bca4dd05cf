"""The repeated layers of a network, found from its structure: what depth, sharding and recomputing go by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from torch import nn

_LISTS = (nn.ModuleList, nn.Sequential)


class Block(NamedTuple):
    """One of the repeated layers of a network, such as a transformer layer or a unit of a residual stage."""

    path: str
    """Module path from the network that was searched."""
    module: nn.Module


def find_blocks(network: nn.Module) -> list[Block]:
    """The repeated layers, outermost ones, in the order in which the network holds them.

    A block is a member of a list (`ModuleList`, `Sequential`, or a class derived from one) that holds
    children and parameters, is no list itself and holds no list of such members of one class (a stage does).
    Its class occurs at least twice: the layers of a transformer, the units of the stages of a convolutional
    network. A network without such lists has no blocks.
    """
    candidates = list(_candidates(network, ""))
    counts = Counter(type(block.module) for block in candidates)
    return [block for block in candidates if counts[type(block.module)] >= 2]


def _candidates(module: nn.Module, path: str) -> Iterator[Block]:
    """Members of lists that are layers, outermost first."""
    for name, child in module.named_children():
        inner = f"{path}.{name}" if path else name
        if isinstance(module, _LISTS) and _is_layer(child):
            yield Block(inner, child)
        else:
            yield from _candidates(child, inner)


def _is_layer(module: nn.Module) -> bool:
    """Whether a module is more than one operation, and neither a list of layers nor a stage of them."""
    if isinstance(module, _LISTS) or not any(True for _ in module.children()):
        return False
    lists = (list(child.children()) for child in module.children() if isinstance(child, _LISTS))
    if any(_is_layer(members[0]) and len({type(m) for m in members}) == 1 for members in lists if members):
        return False
    return any(True for _ in module.parameters())
