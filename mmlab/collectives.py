"""Collective operations that are no-ops in one process: gather with gradient, a CPU group."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of processes of this run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class _Gather(torch.autograd.Function):
    """All-gather along dim 0; its gradient is the sum over ranks of the gradients of this rank's rows."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.rows = len(tensor)
        gathered = tensor.new_empty((world_size() * len(tensor), *tensor.shape[1:]))
        dist.all_gather_into_tensor(gathered, tensor.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # gloo has no reduce-scatter on every release that mmlab supports; a sum and a slice is the same.
        total = gradients[0].contiguous().clone()
        if dist.get_backend() == "nccl":
            own = total.new_empty((ctx.rows, *total.shape[1:]))
            dist.reduce_scatter_tensor(own, total)
            return own
        dist.all_reduce(total)
        return total[rank() * ctx.rows : (rank() + 1) * ctx.rows]


def gather(tensor: Tensor) -> Tensor:
    """Concatenate a tensor of all ranks along dim 0, in rank order, with gradient.

    Every rank must pass the same shape.
    """
    if world_size() == 1:
        return tensor
    gathered: Tensor = _Gather.apply(tensor)
    return gathered


def total(tensor: Tensor) -> Tensor:
    """Sum a tensor over ranks, without gradient; the argument stays as it was."""
    summed = tensor.detach().clone()
    if world_size() > 1:
        dist.all_reduce(summed)
    return summed
