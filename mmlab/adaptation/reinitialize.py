"""Starting the top blocks of a pretrained network again at random."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from mmlab.models.blocks import find_blocks


@torch.no_grad()
def reinitialize(network: nn.Module, count: int) -> None:
    """Give the last blocks fresh weights, the way the network itself starts them.

    Zhang et al. 2021, arXiv:2006.05987. Every module's `reset_parameters` runs, then what the network around
    the block has: `_init_weights` of transformers, `init_weights` of timm. Running statistics of batch norms
    start again too; an encoder that keeps them fixed (`freeze_batch_norm`) should then let them move.

    Args:
        network: Changed in place.
        count: How many blocks, from the top.

    Raises:
        ValueError: The network has fewer blocks, or a parameter that nothing gives a first value.
    """
    blocks = find_blocks(network)
    if count > len(blocks):
        raise ValueError(
            f"reinitialize={count}: {type(network).__name__} has {len(blocks)} blocks; choose at most that"
        )
    for path, block in blocks[len(blocks) - count :]:
        for parameter in block.parameters():
            parameter.fill_(torch.nan)
        for module in block.modules():
            reset = getattr(module, "reset_parameters", getattr(module, "_reset_parameters", None))
            if reset is not None:
                reset()
        _start_as_within(network, path)
        left = [name for name, parameter in block.named_parameters() if bool(parameter.isnan().any())]
        if left:
            raise ValueError(
                f"reinitialize: nothing gives {path}.{left[0]} a first value: give the module that holds it "
                "a method reset_parameters(), or leave reinitialize out"
            )


def _start_as_within(network: nn.Module, path: str) -> None:
    """Start a block as the innermost network around it does, if that has a way of its own."""
    block = network.get_submodule(path)
    above = path
    while above:
        above = above.rpartition(".")[0]
        around: Any = network.get_submodule(above)
        if hasattr(around, "_init_weights") and hasattr(around, "config"):
            for part in [*block.modules(), *block.parameters(), *block.buffers()]:
                # transformers leaves alone what it has once filled.
                part.__dict__.pop("_is_hf_initialized", None)
            block.apply(around._init_weights)
            return
        if callable(getattr(around, "init_weights", None)):
            fresh: Any = copy.deepcopy(around)
            fresh.init_weights()
            inner = path.removeprefix(above).lstrip(".")
            block.load_state_dict(fresh.get_submodule(inner).state_dict())
            return
