"""What every pretrained network inside a model is, as those see it who adapt, shard or recompute it."""

from __future__ import annotations

from torch import nn


class Network(nn.Module):
    """A network that comes with weights of its own: an encoder, a language model.

    Adaptation, layer-wise learning rates, recomputing and compiling take each for one whole, find its blocks
    from its structure, and leave what stands around it (projections, heads) alone.
    """
