"""How AdaLoRA shares its ranks out over the layers (Zhang et al. 2023, arXiv:2303.10512)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

from mmlab.adaptation.injected import ADAPTER

WARM_UP = 0.1
"""Share of the run in which every layer keeps the rank it starts with."""
SETTLED = 0.5
"""Share of the run, at its end, in which nothing moves between layers."""
SMOOTHING = 0.85
"""Weight of the past in both averages (beta_1 and beta_2)."""
ORTHOGONALITY = 0.5
"""Weight of the penalty; peft's."""
FACTORS = ("lora_A", "lora_E", "lora_B")


def budget(step: int, *, start: int, end: int, total_steps: int) -> int:
    """Triplets that all layers have together after a step (equation 12).

    Args:
        step: Optimizer steps done.
        start: Triplets at the start.
        end: Triplets from the settled part of the run on.
        total_steps: Of the whole run.
    """
    first, last = round(WARM_UP * total_steps), total_steps - round(SETTLED * total_steps)
    if step <= first:
        return start
    if step >= last:
        return end
    return int(end + (start - end) * (1 - (step - first) / (last - first)) ** 3)


def triplet_scores(
    importance: dict[str, Float[Tensor, "_ _"]], uncertainty: dict[str, Float[Tensor, "_ _"]]
) -> Float[Tensor, " triplets"]:
    """How much each triplet of a layer matters (equations 8 and 11), by `lora_A`, `lora_E`, `lora_B`."""
    scores = {name: importance[name] * uncertainty[name] for name in FACTORS}
    return scores["lora_E"].flatten() + scores["lora_A"].mean(1) + scores["lora_B"].mean(0)


class RankBudget:
    """Takes triplets away where they matter least, until each layer has `rank` on average.

    Importance and its uncertainty are kept in buffers of the layers, so that a checkpoint holds them and a
    resumed run shares out as the uninterrupted one. Which triplets are left follows from them alone.
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def watch(self, layer: Any) -> None:
        """Add the buffers to a layer of peft's."""
        for name in FACTORS:
            parameter = getattr(layer, name)[ADAPTER]
            for kind in ("importance", "uncertainty"):
                layer.register_buffer(f"{kind}_{name}", torch.zeros_like(parameter, requires_grad=False))

    def penalty(self, layers: Iterable[Any]) -> Float[Tensor, ""] | None:
        """Mean distance of A A^T and B^T B from the identity, times its weight, as peft has it.

        The paper (equation 4) adds up squares instead.
        """
        distances = []
        for layer in layers:
            for factor in (_whole(layer.lora_A[ADAPTER]), _whole(layer.lora_B[ADAPTER]).T):
                gram = factor @ factor.T
                distances.append(torch.linalg.norm(gram - torch.eye(len(gram)).to(gram)))
        return ORTHOGONALITY * torch.stack(distances).mean() if distances else None

    @torch.no_grad()
    def step(self, layers: list[Any], step: int, total_steps: int) -> None:
        """Learn from the gradients of a step, and set to zero the triplets that are over the budget."""
        if step < total_steps - round(SETTLED * total_steps):
            for layer in layers:
                _observe(layer)
        start = sum(layer.r[ADAPTER] for layer in layers)
        count = budget(step, start=start, end=self.rank * len(layers), total_steps=total_steps)
        if count == start:
            return
        scores = [
            triplet_scores(_buffers(layer, "importance"), _buffers(layer, "uncertainty")) for layer in layers
        ]
        kept = torch.zeros(start, dtype=torch.bool, device=scores[0].device)
        kept[torch.cat(scores).topk(count).indices] = True
        masks = torch.split(kept, [len(score) for score in scores])
        for layer, mask in zip(layers, masks, strict=True):
            values = layer.lora_E[ADAPTER]
            values.copy_(_like(_whole(values) * mask[:, None], values))


def _observe(layer: Any) -> None:
    """Smooth |w dL/dw| and how far it strays (equations 8 to 10).

    Gradients of a step that the scaler of float16 skipped are not finite; they count as 0.
    """
    importance, uncertainty = _buffers(layer, "importance"), _buffers(layer, "uncertainty")
    for name in FACTORS:
        parameter = getattr(layer, name)[ADAPTER]
        if parameter.grad is None:
            continue
        now = (_whole(parameter) * _whole(parameter.grad)).abs().nan_to_num(0, posinf=0)
        importance[name].lerp_(now, 1 - SMOOTHING)
        uncertainty[name].lerp_((now - importance[name]).abs(), 1 - SMOOTHING)


def _buffers(layer: Any, kind: str) -> dict[str, Tensor]:
    return {name: layer.get_buffer(f"{kind}_{name}") for name in FACTORS}


def _whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _like(whole: Tensor, sharded: Tensor) -> Tensor:
    """Shard a tensor that all ranks hold as another one is."""
    if not isinstance(sharded, DTensor):
        return whole
    mesh = sharded.device_mesh
    return DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim).redistribute(mesh, sharded.placements)
