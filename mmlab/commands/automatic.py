"""What `--trainer.strategy auto` means where there are several devices."""

from __future__ import annotations

import os
from dataclasses import replace

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import Strategy

from mmlab.commands.worst_batches import worst_batches
from mmlab.data.module import ShardData
from mmlab.parallel.choice import Choice, choose_strategy, device_memory
from mmlab.parallel.strategies import DistributedDataParallel, FullySharded
from mmlab.tasks.base import BaseTask

CHOSEN = "MMLAB_STRATEGY"
"""Ranks that this process starts read here what it chose."""
_DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def choose(trainer: Trainer, task: BaseTask, data: ShardData) -> Choice:
    """Choose by the memory that a training step of the largest batch needs; the same on every rank.

    Args:
        trainer: Knows the devices; it is not used for training.
        task: Built.
        data: Not set up.

    Raises:
        ValueError: Nothing fits.
    """
    told = os.environ.get(CHOSEN)
    if told is not None:
        strategy, share, reason = told.split(" ", 2)
        return Choice(strategy, float(share), reason)
    ranks = trainer.world_size
    largest = worst_batches(data, ranks=ranks)[0].batch
    choice = choose_strategy(
        task,
        largest,
        devices=ranks,
        memory=device_memory(trainer.strategy.root_device, trainer.num_devices),
        dtype=_DTYPES.get(trainer.precision),
    )
    if choice.strategy == "none":
        raise ValueError(f"trainer.strategy auto: {choice.reason}")
    os.environ[CHOSEN] = f"{choice.strategy} {choice.checkpointing} {choice.reason}"
    return choice


def apply(choice: Choice, task: BaseTask) -> Strategy:
    """The strategy that was chosen; the task computes again what it must."""
    if choice.checkpointing > task.execution.checkpointing:
        task.execution = replace(task.execution, checkpointing=choice.checkpointing)
    return DistributedDataParallel() if choice.strategy == "ddp" else FullySharded()
