"""Which strategy a task needs on the devices that there are, and why."""

from __future__ import annotations

import os
from typing import NamedTuple

import torch
from torch import nn

from mmlab.batch import Batch
from mmlab.models.blocks import find_blocks
from mmlab.parallel.activations import Activations, activation_bytes
from mmlab.tasks.base import BaseTask

USABLE = 0.9
"""Share of a device's memory that a step may take; the rest is for libraries and for gaps."""
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of blocks that may be computed again."""
GB = 1e9


class Held(NamedTuple):
    """Bytes that a model takes while it is trained, whole."""

    weights: int
    trained: int
    """Of the weights, those that have gradients."""
    states: int
    """Of the optimizer."""
    around: int
    """Of the weights, those outside blocks: gathered from the forward to the end of the backward pass."""
    block: int
    """Weights of the largest block."""

    @property
    def total(self) -> int:
        """Weights, gradients and optimizer states."""
        return self.weights + self.trained + self.states

    def sharded(self, devices: int) -> int:
        """On one of several devices: its share, and what is gathered at once.

        That is what stands around the blocks, a block, the one that is fetched ahead, and the gradients of
        both until they are averaged.
        """
        return -(-self.total // devices) + 2 * self.around + 3 * self.block


class Choice(NamedTuple):
    """How to run a task."""

    strategy: str
    """`ddp`, `fsdp2`, or `none` where nothing fits."""
    checkpointing: float
    """Share of the blocks to compute again, :attr:`mmlab.parallel.execution.Execution.checkpointing`."""
    reason: str
    """One sentence with the numbers."""


def choose_strategy(
    task: BaseTask, batch: Batch, *, devices: int, memory: int, dtype: torch.dtype | None = None
) -> Choice:
    """Choose by what a training step needs; see :func:`choose`.

    Args:
        task: Built, not yet sharded.
        batch: Of one rank, of the greatest sizes that occur.
        devices: Ranks of the run.
        memory: Bytes of one device, :func:`device_memory`.
        dtype: Of autocast, or None without it.
    """
    return choose(held(task), activation_bytes(task, batch, dtype=dtype), devices=devices, memory=memory)


def choose(held: Held, activations: Activations, *, devices: int, memory: int) -> Choice:
    """The least that fits: recompute as little as possible, then copies of the model before shards of it.

    Recomputing all blocks costs a third of the step's arithmetic; gathering shards costs traffic, which
    mostly hides behind arithmetic.
    """
    needed = {"ddp": held.total, "fsdp2": held.sharded(devices)}
    room = USABLE * memory
    for share in SHARES if activations.blocks else SHARES[:1]:
        for strategy, model in needed.items():
            if model + activations.held(share) <= room:
                return Choice(strategy, share, _reason(strategy, share, held, activations, devices, memory))
    least = needed["fsdp2"] + activations.held(1.0 if activations.blocks else 0.0)
    return Choice(
        "none",
        0.0,
        f"nothing fits: sharded over {devices} devices and with every block computed again, a step takes "
        f"about {least / GB:.1f} GB, and a device has {memory / GB:.1f} GB: lower data.batch_size, set "
        "execution.micro_batch, or take more devices",
    )


def _reason(
    strategy: str, share: float, held: Held, activations: Activations, devices: int, memory: int
) -> str:
    parts = [
        f"weights, gradients and optimizer states take {held.total / GB:.1f} GB, activations about "
        f"{activations.held() / GB:.1f} GB"
    ]
    if strategy == "fsdp2":
        parts.append(f"sharded over {devices} devices the former take {held.sharded(devices) / GB:.1f} GB")
    if share > 0:
        parts.append(
            f"with {share:.0%} of the blocks computed again the latter take "
            f"{activations.held(share) / GB:.1f} GB"
        )
    return f"{strategy}: {', '.join(parts)}; a device has {memory / GB:.1f} GB"


def held(task: BaseTask) -> Held:
    """What the model of a task takes while it is trained."""
    parameters = dict(task.named_parameters())
    trained = sum(
        parameter.nbytes
        for name, parameter in parameters.items()
        if parameter.requires_grad or task.adaptation.trainable(name.removeprefix("model."))
    )
    blocks = [block.module for child in task.children() for block in find_blocks(child)]
    sizes = [sum(parameter.nbytes for parameter in block.parameters()) for block in blocks]
    weights = sum(parameter.nbytes for parameter in parameters.values())
    weights += sum(buffer.nbytes for buffer in task.buffers())
    return Held(
        weights=weights,
        trained=trained,
        states=round(trained * _states_of(task)),
        around=weights - sum(sizes),
        block=max(sizes, default=0),
    )


def _states_of(task: BaseTask) -> float:
    """Bytes that the task's optimizer keeps for each byte of a parameter, by trying it on a small one."""
    parameter = nn.Parameter(torch.zeros(8, 8))
    parameter.grad = torch.zeros_like(parameter)
    optimizer = task.optimization.optimizer([parameter])
    optimizer.step()
    kept = [value for value in optimizer.state[parameter].values() if isinstance(value, torch.Tensor)]
    return sum(value.nbytes for value in kept if value.ndim > 0) / parameter.nbytes


def device_memory(device: torch.device, ranks: int) -> int:
    """Bytes that one rank may take: of a GPU all of it, of a CPU its share of the machine.

    Args:
        device: Where the rank computes.
        ranks: Of this machine.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // ranks
