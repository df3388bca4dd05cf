"""How far below the top of an encoder a parameter stands: what layer-wise rates and unfreezing go by."""

from __future__ import annotations

from torch import nn

from mmlab.models.blocks import find_blocks
from mmlab.models.network import Network


def depths(model: nn.Module) -> dict[str, int]:
    """Depth of every parameter of a model with any number of encoders; see :func:`network_depths`.

    What is in no encoder (pooling, projections, fusion, heads, a loss) has depth 0.
    """
    found = {name: 0 for name, _ in model.named_parameters()}
    for path, module in model.named_modules():
        if isinstance(module, Network):
            prefix = f"{path}." if path else ""
            found |= {prefix + name: depth for name, depth in network_depths(module).items()}
    return found


def network_depths(network: nn.Module) -> dict[str, int]:
    """Depth of every parameter of one network, 0 in its top block and growing towards the input.

    Of L blocks (:func:`~mmlab.models.blocks.find_blocks`), in the order in which the network holds them, the
    last has depth 0 and the first L - 1. What the network holds before the first block (embeddings, a stem)
    has depth L, and so has every `nn.Embedding` outside the blocks; anything else outside has the depth of
    the block that it follows (a final norm: 0). A network without blocks has depth 0 throughout.
    """
    blocks = find_blocks(network)
    block_of = {
        id(parameter): number
        for number, block in enumerate(blocks)
        for parameter in block.module.parameters()
    }
    tables = {
        id(parameter)
        for module in network.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters()
    }
    found: dict[str, int] = {}
    reached = -1
    for name, parameter in network.named_parameters():
        inside = block_of.get(id(parameter))
        reached = reached if inside is None else inside
        stem = inside is None and (reached < 0 or id(parameter) in tables)
        found[name] = len(blocks) if stem else len(blocks) - 1 - reached
    return found
