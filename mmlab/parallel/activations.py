"""What a training step holds between forward and backward pass, found without running it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)  # fmt: skip
from torch.autograd.graph import saved_tensors_hooks

from mmlab.batch import Batch
from mmlab.models.blocks import find_blocks
from mmlab.parallel.execution import Execution
from mmlab.parallel.micro_batch import part_size, split
from mmlab.parallel.recompute import repeating
from mmlab.tasks.base import BaseTask


class Activations(NamedTuple):
    """Bytes of the tensors that a backward pass needs, weights not counted."""

    around: int
    """Outside the blocks; what these read among it."""
    blocks: tuple[int, ...]
    """Inside each block."""

    def held(self, checkpointing: float = 0.0) -> int:
        """The most that is held at once.

        Args:
            checkpointing: Share of the blocks that are computed again, one at a time.
        """
        again = max(self.blocks, default=0) if checkpointing > 0 else 0
        return self.around + round((1 - checkpointing) * sum(self.blocks)) + again


def activation_bytes(task: BaseTask, batch: Batch, *, dtype: torch.dtype | None = None) -> Activations:
    """Measure the activations of one training step on one rank.

    The forward pass runs on fake tensors, which have a size and no content: nothing is computed or allocated,
    and weights, running statistics and the state of random numbers stay as they are. A model whose sizes
    depend on the content (samples packed by their lengths) is run on one sample instead, which counts for
    each. Where `execution.micro_batch` is set, it is one part that counts.

    Args:
        task: Built, not yet sharded.
        batch: Of one rank, of the greatest sizes that occur.
        dtype: Of autocast, or None without it.

    Returns:
        Each storage counted once, where it is first needed.
    """
    if task.execution.micro_batch is not None:
        batch = next(split(batch, part_size(batch, task.execution.micro_batch)))
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        return _measured(task, _faked(batch, fake), fake, dtype)
    except (DynamicOutputShapeException, DataDependentOutputException):
        one = _measured(task, next(split(batch, 1)), repeating(task), dtype)
        return Activations(len(batch) * one.around, tuple(len(batch) * block for block in one.blocks))


def _measured(
    task: BaseTask, batch: Batch, mode: AbstractContextManager[Any], dtype: torch.dtype | None
) -> Activations:
    counter = _Counter(task)
    device = batch.place.device.type
    with (
        _as_in_training(task), mode, torch.autocast(device, dtype=dtype, enabled=dtype is not None),
        counter.following(), saved_tensors_hooks(counter.count, lambda tensor: tensor),
    ):  # fmt: skip
        task.losses(batch)
    return Activations(counter.around, tuple(counter.blocks))


@contextmanager
def _as_in_training(task: BaseTask) -> Iterator[None]:
    """Training mode, the whole batch at once, and random numbers as they were."""
    execution, mode = task.execution, task.training
    try:
        task.execution = Execution()
        task.train()
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            yield
    finally:
        task.execution = execution
        task.train(mode)


class _Counter:
    """Adds up what is saved for the backward pass, by block."""

    def __init__(self, task: nn.Module) -> None:
        held = [*task.parameters(), *task.buffers()]
        self._seen = {tensor.untyped_storage()._cdata: tensor for tensor in held}
        self._modules = [block.module for child in task.children() for block in find_blocks(child)]
        self._inside: int | None = None
        self._inputs: list[Tensor] = []
        self.around = 0
        self.blocks = [0] * len(self._modules)

    def count(self, tensor: Tensor) -> Tensor:
        """Count what is saved; returns it."""
        # A block that saves something would be computed again from what it read; a frozen one saves nothing.
        for read in self._inputs:
            self.around += self._size(read)
        self._inputs.clear()
        if self._inside is None:
            self.around += self._size(tensor)
        else:
            self.blocks[self._inside] += self._size(tensor)
        return tensor

    def _size(self, tensor: Tensor) -> int:
        """Bytes of the storage; 0 if it has been counted."""
        storage = tensor.untyped_storage()
        if storage._cdata in self._seen:
            return 0
        # Held on to, or the next storage might get the same address.
        self._seen[storage._cdata] = tensor.detach()
        return storage.nbytes()

    @contextmanager
    def following(self) -> Iterator[None]:
        """Know which block runs."""
        with ExitStack() as stack:
            for number, module in enumerate(self._modules):
                before = module.register_forward_pre_hook(self._enter(number), with_kwargs=True)
                after = module.register_forward_hook(self._leave)
                stack.callback(before.remove)
                stack.callback(after.remove)
            yield

    def _enter(self, number: int) -> Any:
        def enter(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            self._inside = number
            self._inputs = [value for value in (*arguments, *keywords.values()) if isinstance(value, Tensor)]

        return enter

    def _leave(self, module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        self._inside = None
        self._inputs = []


def _faked(value: Any, mode: FakeTensorMode) -> Any:
    """A batch or input with fake tensors in it."""
    if isinstance(value, Tensor):
        return mode.from_tensor(value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _faked(getattr(value, f.name), mode) for f in fields(value)})
    return value
