"""How a model is run, whatever it computes: what is recomputed, compiled, split into parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mmlab.batch import Batch
from mmlab.parallel.compiling import compile_model
from mmlab.parallel.micro_batch import run_in_parts
from mmlab.parallel.recompute import checkpoint_blocks


@dataclass(frozen=True)
class Execution:
    """Settings that change time and memory, not what is computed.

    Raises:
        ValueError: If a setting is out of its range.
    """

    micro_batch: int | dict[int, int] | None = None
    """Samples of a rank that are run through the model at once in training; the loss is still that of the
    whole batch, however it mixes samples. Activations of one part are held at a time, for a second forward
    pass. A mapping from length to samples says it by the longest row of a batch: the smallest length that is
    not below it counts. None runs the batch whole."""
    checkpointing: float = 0.0
    """Share of the model's blocks, from 0 to 1, whose activations are computed again in the backward pass
    instead of held."""
    compile: bool = False
    """Compile the networks with torch.compile, for any batch size and length."""
    tf32: bool = False
    """Let matrix products and convolutions of float32 run in TF32 on GPUs that have it."""

    def __post_init__(self) -> None:
        sizes = self.micro_batch.values() if isinstance(self.micro_batch, dict) else [self.micro_batch]
        if any(size is not None and size < 1 for size in sizes) or self.micro_batch == {}:
            raise ValueError(f"micro_batch={self.micro_batch}: it must be at least 1 sample")
        if not 0 <= self.checkpointing <= 1:
            raise ValueError(f"checkpointing={self.checkpointing}: it is a share of the blocks, from 0 to 1")

    def prepare(self, model: nn.Module) -> None:
        """Change a built and adapted model in place, once, before it is sharded."""
        if self.tf32:
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.allow_tf32 = True
        if self.checkpointing > 0:
            checkpoint_blocks(model, self.checkpointing)
        if self.compile:
            compile_model(model)

    def run(self, model: nn.Module, batch: Batch) -> Any:
        """What the model makes of a batch; in training as `micro_batch` says."""
        if self.micro_batch is None or not (model.training and torch.is_grad_enabled()):
            return model(batch)
        return run_in_parts(model, batch, self.micro_batch)
