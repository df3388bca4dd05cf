"""Computing activations a second time, in the backward pass, instead of holding them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmlab.models.blocks import Block, find_blocks
from mmlab.models.network import Network

T = TypeVar("T")

_RECOMPUTING: ContextVar[bool] = ContextVar("recomputing", default=False)


def recomputing() -> bool:
    """Whether what runs now has run before, in the forward pass: what counts work leaves that out.

    A compiled block recomputes inside its compiled code, where nothing asks.
    """
    return _RECOMPUTING.get()


def recompute_later(function: Callable[[], T], module: nn.Module, example: Tensor) -> T:
    """Call a function without holding its activations; the backward pass calls it again.

    The second call draws the random numbers of the first and leaves running statistics alone.

    Args:
        function: Returns the same each time.
        module: What it runs.
        example: A tensor that it reads. It says on which device random numbers are drawn.
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), repeating(module)

    # Torch looks for the device among the arguments, and would not find it in a batch or in keywords.
    result: T = checkpoint(lambda _: function(), example, use_reentrant=False, context_fn=contexts)
    return result


@contextmanager
def repeating(module: nn.Module) -> Iterator[None]:
    """What runs in here has run before: norms update copies of their running statistics."""
    norms = [
        part for part in module.modules() if part.training and getattr(part, "track_running_stats", False)
    ]
    kept = [dict(norm._buffers) for norm in norms]
    token = _RECOMPUTING.set(True)
    try:
        for norm in norms:
            norm._buffers.update({name: b if b is None else b.clone() for name, b in norm._buffers.items()})
        yield
    finally:
        _RECOMPUTING.reset(token)
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers.update(buffers)


class Recomputed:
    """The `forward` of one module, run again in the backward pass.

    It stands in the module's place for its method and not around the module, so that parameters keep their
    names. It can be copied and pickled with the module.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Run the method."""
        module, forward = self.module, type(self.module).forward
        if not torch.is_grad_enabled():
            return forward(module, *arguments, **keywords)
        if torch.compiler.is_compiling():
            # The compiler sees which operations to repeat; those of running statistics are none of them.
            return checkpoint(
                lambda *a, **k: forward(module, *a, **k), *arguments, use_reentrant=False, **keywords
            )
        inputs = chain(arguments, keywords.values(), module.parameters())
        example = next(tensor for tensor in inputs if isinstance(tensor, Tensor))
        return recompute_later(lambda: forward(module, *arguments, **keywords), module, example)


def checkpoint_blocks(model: nn.Module, share: float) -> None:
    """Compute a share of the blocks again in the backward pass, in place.

    Of these only the inputs are held (Chen et al. 2016, arXiv:1604.06174). They are spread evenly over each
    network: each encoder, or each child of a model without encoders. A second call replaces the first.

    Args:
        model: Built and adapted.
        share: From 0 to 1, rounded to whole blocks of a network; above 0, one at least.

    Raises:
        ValueError: The model has no blocks.
    """
    found = [find_blocks(network) for network in networks(model)]
    if share > 0 and not any(found):
        raise ValueError(
            f"checkpointing={share:g}: {type(model).__name__} has no repeated layers to compute again (of a "
            "model with encoders theirs count): leave it out"
        )
    for blocks in found:
        count = 0 if share == 0 else max(1, round(share * len(blocks)))
        for number, block in enumerate(blocks):
            _set(block, (number + 1) * count // len(blocks) > number * count // len(blocks))


def networks(model: nn.Module) -> list[nn.Module]:
    """The encoders of a model, or its children where it has none."""
    encoders: list[nn.Module] = [module for module in model.modules() if isinstance(module, Network)]
    return encoders or list(model.children())


def _set(block: Block, again: bool) -> None:
    """Recompute a block, or do not."""
    replaced = vars(block.module).pop("forward", None)
    assert replaced is None or isinstance(replaced, Recomputed), f"the forward of {block.path} is replaced"
    if again:
        block.module.forward = Recomputed(block.module)
