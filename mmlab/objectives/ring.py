"""The ring of ranks: every rank's block visits every rank, and comes home with what was found."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor

from mmlab import collectives

Tensors: TypeAlias = tuple[Tensor, ...]


def travel(
    block: Tensors, visit: Callable[[Tensors], Tensors], merge: Callable[[Tensors, Tensors], Tensors]
) -> Tensors:
    """Let the blocks of all ranks go round; returns what all ranks together found about this rank's own.

    A rank holds one visiting block, and a second one while that arrives. What was found follows a step
    behind its block, so that both are under way while the next visit is computed. In one process the block
    visits once. Every rank must call it, with tensors of the same shapes.

    Args:
        block: What travels.
        visit: Called with each block; what this rank finds about it.
        merge: Two findings about one block as one; may overwrite the first.
    """
    found: collectives.Passing | None = None
    for left in reversed(range(collectives.world_size())):
        arriving = collectives.pass_on(block) if left > 0 else None
        here = visit(block)
        found = collectives.pass_on(here if found is None else merge(here, found.wait()))
        if arriving is not None:
            block = arriving.wait()
    assert found is not None
    return found.wait()
