"""Collective operations that are no-ops in one process: gather with gradient, sums, a ring, a CPU group."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

# torch 2.14 renamed these two, and warns at each call by the old names.
_all_gather: Callable[[Tensor, Tensor], Any] = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
_reduce_scatter: Callable[[Tensor, Tensor], Any] = getattr(
    dist, "reduce_scatter_single", dist.reduce_scatter_tensor
)


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
        _all_gather(gathered, tensor.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # gloo has no reduce-scatter on every release that mmlab supports; a sum and a slice is the same.
        summed = gradients[0].contiguous().clone()
        if dist.get_backend() == "nccl":
            own = summed.new_empty((ctx.rows, *summed.shape[1:]))
            _reduce_scatter(own, summed)
            return own
        dist.all_reduce(summed)
        return summed[rank() * ctx.rows : (rank() + 1) * ctx.rows]


def gather(tensor: Tensor) -> Tensor:
    """Concatenate a tensor of all ranks along dim 0, in rank order, with gradient.

    Every rank must pass the same shape, and every rank must run the backward pass or none.
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


class Passing:
    """Tensors on their way round the ring: some to the next rank, others from the previous one."""

    def __init__(
        self, leaving: tuple[Tensor, ...], arriving: tuple[Tensor, ...], work: list[dist.Work]
    ) -> None:
        self._leaving = leaving  # their memory must not be given away before they have been sent
        self._arriving = arriving
        self._work = work

    def wait(self) -> tuple[Tensor, ...]:
        """What came from the previous rank; on a GPU the current stream waits for it, not the host."""
        for work in self._work:
            work.wait()
        self._leaving = ()
        return self._arriving


def pass_on(tensors: tuple[Tensor, ...]) -> Passing:
    """Start to send tensors to the next rank, and to receive those of the previous one, without gradient.

    The last rank's next is the first. Sending and receiving start together and block nothing, so the ring
    cannot wait for itself. Several may be under way: they arrive in the order in which they were sent. In one
    process, which is its own neighbour, the tensors come back.

    Args:
        tensors: Of the same shapes and types on every rank, all of which must call this. They must stay as
            they are until `wait` has returned.
    """
    ranks = world_size()
    if ranks == 1 or not tensors:
        return Passing((), tensors, [])
    leaving = tuple(tensor.contiguous() for tensor in tensors)
    arriving = tuple(torch.empty_like(tensor) for tensor in leaving)
    following, previous = (rank() + 1) % ranks, (rank() - 1) % ranks
    operations = [dist.P2POp(dist.isend, tensor, following) for tensor in leaving]
    operations += [dist.P2POp(dist.irecv, tensor, previous) for tensor in arriving]
    return Passing(leaving, arriving, dist.batch_isend_irecv(operations))


@lru_cache(maxsize=1)
def _gloo_beside(world: dist.ProcessGroup) -> dist.ProcessGroup:
    """The gloo group that accompanies a default group; made once for each."""
    if dist.get_backend(world) == "gloo":
        return world
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup)
    return group


def cpu_group() -> dist.ProcessGroup | None:
    """A group of all ranks that moves CPU tensors, whatever the backend; None in one process.

    The first call is collective: every rank must make it.
    """
    if world_size() == 1:
        return None
    assert dist.group.WORLD is not None
    return _gloo_beside(dist.group.WORLD)


def gather_rows(tensor: Tensor) -> Tensor:
    """Concatenate a tensor of all ranks along dim 0, in rank order, on the CPU, without gradient.

    Ranks may pass different numbers of rows; one that has no row may pass any size in the other dimensions.
    """
    own = tensor.detach().cpu()
    group = cpu_group()
    if group is None:
        return own
    shapes = [torch.empty(own.ndim, dtype=torch.int64) for _ in range(world_size())]
    dist.all_gather(shapes, torch.tensor(own.shape), group=group)
    rows = [int(shape[0]) for shape in shapes]
    rest = next((shape[1:] for shape in shapes if shape[0] > 0), shapes[0][1:]).tolist()
    padded = own.new_zeros((max(rows), *rest))
    if len(own) > 0:
        padded[: len(own)] = own
    gathered = [torch.empty_like(padded) for _ in rows]
    dist.all_gather(gathered, padded, group=group)
    return torch.cat([part[:count] for part, count in zip(gathered, rows, strict=True)])


def host_total(counts: list[int]) -> list[int]:
    """Sum counts of this process over ranks, past the device."""
    group = cpu_group()
    if group is None:
        return counts
    summed = torch.tensor(counts, dtype=torch.int64)
    dist.all_reduce(summed, group=group)
    return [int(count) for count in summed]


def gather_objects(value: T) -> list[T]:
    """The small Python objects of all ranks, in rank order, for reports; they are pickled."""
    group = cpu_group()
    if group is None:
        return [value]
    gathered: list[T] = [value] * world_size()
    dist.all_gather_object(gathered, value, group=group)
    return gathered
