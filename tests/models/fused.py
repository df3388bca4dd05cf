"""Every fusion, and encoded samples that lack this or that."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch

from mmlab.batch import Modality
from mmlab.models.encoders.encoder import Encoded
from mmlab.models.fusion.alignment import AlignmentFusion, ClockFusion
from mmlab.models.fusion.bottleneck import BottleneckFusion
from mmlab.models.fusion.concatenation import ConcatenationFusion
from mmlab.models.fusion.crossmodal import CrossmodalFusion
from mmlab.models.fusion.fusion import Fusion
from mmlab.models.fusion.graph import GraphFusion, Near
from mmlab.models.fusion.product import ProductFusion
from mmlab.models.fusion.projection import ProjectionFusion
from mmlab.models.fusion.tensor import LowRankTensorFusion, TensorFusion
from mmlab.models.fusion.transformer import TransformerFusion
from mmlab.models.fusion.weighted_sum import WeightedSumFusion

Make = Callable[..., Fusion]
DIMS = {"image": 6, "text": 4, "signal": 3}


def fixed_weights(dims: Iterable[str]) -> dict[str, float]:
    return {name: float(len(name)) for name in dims}


TOKENS = {"image": [2, 2, 2, 0], "text": [3, 1, 0, 0], "signal": [1, 0, 1, 0]}
"""Of each of four samples; the last one has nothing at all."""
FUSIONS: dict[str, Make] = {
    "product": ProductFusion,
    "concatenation": ConcatenationFusion,
    "equal": partial(WeightedSumFusion, weights="equal"),
    "learned": partial(WeightedSumFusion, weights="learned"),
    "fixed": lambda dims, **given: WeightedSumFusion(dims, weights=fixed_weights(dims), **given),
    "gated": WeightedSumFusion,
    "tensor": partial(TensorFusion, factor=8),
    "low_rank": partial(LowRankTensorFusion, factor=8),
    "projection": ProjectionFusion,
    "transformer": partial(TransformerFusion, num_heads=2),
    "bottleneck": partial(BottleneckFusion, num_heads=2, bottlenecks=2),
    "crossmodal": partial(CrossmodalFusion, num_heads=2),
    "graph": partial(GraphFusion, num_heads=2),
    "graph_product": partial(GraphFusion, num_heads=2, score="product"),
    "graph_near": partial(GraphFusion, num_heads=2, near=Near(0.6)),
    "graph_grid": partial(GraphFusion, num_heads=2, near=Near(0.6, grid=(1, 2))),
    "graph_best": partial(GraphFusion, num_heads=2, edges="between", keep=2),
    "clock": partial(ClockFusion, ticks=3),
    "alignment": AlignmentFusion,
}


def make(kind: str) -> Fusion:
    """With norms and missing vectors that do something."""
    torch.manual_seed(0)
    fusion = FUSIONS[kind](DIMS, dim=6)
    for parameter in fusion.parameters():
        torch.nn.init.normal_(parameter)
    return fusion.eval()


def encoded(seed: int = 0) -> dict[Modality, Encoded]:
    """What stands in the place of absent tokens is poison."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, counts in TOKENS.items():
        mask = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
        tokens = torch.randn(*mask.shape, DIMS[name], generator=generator)
        made[Modality(name)] = Encoded(
            tokens.masked_fill(~mask[:, :, None], torch.nan).requires_grad_(), mask
        )
    return made
