"""How large the gradients of each part of a model are: which modality learns, and which hardly does."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from mmlab.tasks.base import BaseTask


class GradientNorms(Callback):
    """Logs `train/grad_norm/PART` for each child of the model that is trained: `text`, `audio`, `fusion`, ...

    Norms are Euclidean, of the gradients of a whole step: averaged over ranks (of shards that of the whole),
    accumulated, unscaled, and as they were before a balance changed them and before they were clipped. They
    are taken at steps that are logged, at others nothing is computed.
    """

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        """Take the norms, if this step is logged; every rank does."""
        assert isinstance(pl_module, BaseTask)
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every <= 0 or (trainer.global_step + 1) % every != 0:
            return
        scale = _scale(trainer.precision_plugin, optimizer)
        norms = {
            f"train/grad_norm/{name}": norm / scale for name, norm in part_norms(pl_module.model).items()
        }
        pl_module.log_dict(norms, batch_size=1)


@torch.no_grad()
def part_norms(model: nn.Module) -> dict[str, Tensor]:
    """The norm of the gradients of each child that has any; of shards every rank must call it."""
    found = {}
    for name, child in model.named_children():
        gradients = [parameter.grad for parameter in child.parameters() if parameter.grad is not None]
        if gradients:
            norm = get_total_norm(gradients)
            found[name] = norm.full_tensor() if isinstance(norm, DTensor) else norm
    return found


def _scale(precision: Any, optimizer: Optimizer) -> float:
    """What gradients are still multiplied by: a fused optimizer unscales those of float16 in its step."""
    scaler = getattr(precision, "scaler", None)
    fused = getattr(optimizer, "_step_supports_amp_scaling", False)
    return float(scaler.get_scale()) if scaler is not None and fused else 1.0
