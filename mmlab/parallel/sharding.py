"""Spreading a model over devices: parameters, gradients and optimizer states in shards (FSDP2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import partial, reduce

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from mmlab.models.blocks import find_blocks

_ENTRANCES = ("generate", "match")
"""Methods beside `forward` that run a model, or what stands around its blocks."""


def shard(root: nn.Module, mesh: DeviceMesh, *, dtype: torch.dtype | None = None) -> None:
    """Shard every child that has parameters over a mesh, in place (Zhao et al. 2023, arXiv:2304.11277).

    A block (:func:`~mmlab.models.blocks.find_blocks`) is gathered when it runs and freed after; what stands
    around the blocks of a child is gathered from its forward pass to the end of the backward pass. Frozen
    weights may be of another type than trained ones. What is sharded already stays as it is.

    Args:
        root: A task; its children (model, objective) are called by their `forward`, `generate` or `match`.
        mesh: Of one axis, or of two: replicas, and shards of each.
        dtype: Type in which the matrices of blocks are gathered, where autocast would turn them into it
            anyway: half the traffic, the same numbers. Vectors (biases, norms), what stands around blocks
            and parts of `full_precision` keep theirs. Gradients are averaged in float32 at least. None, or
            a torch before 2.15: the type of the weights.

    Raises:
        ValueError: A parameter of the root itself or one without dimensions; a mesh of another kind.
    """
    names = mesh.mesh_dim_names or ()
    if mesh.ndim > 2 or "tensor_parallel" in names:
        raise ValueError(
            f"a mesh of {', '.join(names)}: models are sharded over one axis, or two of replicas and shards; "
            "set trainer.strategy to mmlab.parallel.strategies.FullySharded"
        )
    alone = [name for name, _ in root.named_parameters(recurse=False)]
    if alone:
        raise ValueError(
            f"{type(root).__name__}.{alone[0]} would not be averaged over ranks: hold it in a module"
        )
    for child in root.children():
        if isinstance(child, FSDPModule) or not any(True for _ in child.parameters()):
            continue
        whole = in_full_precision(child)
        for block in find_blocks(child):
            fully_shard(
                block.module,
                mesh=mesh,
                mp_policy=_policy(block.module, None if block.module in whole else dtype),
            )
        fully_shard(child, mesh=mesh, mp_policy=_policy(child, None))
        for entrance in _ENTRANCES:
            if hasattr(child, entrance):
                register_fsdp_forward_method(child, entrance)


def in_full_precision(module: nn.Module) -> set[nn.Module]:
    """Modules that compute in the type of their weights in mixed precision too (`full_precision`)."""
    return {
        inner
        for part in module.modules()
        if getattr(part, "full_precision", False)
        for inner in part.modules()
    }


def _policy(module: nn.Module, dtype: torch.dtype | None) -> MixedPrecisionPolicy:
    """In which types the parameters of a module are gathered, and its gradients averaged."""
    types = [parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()]
    averaged = reduce(torch.promote_types, types, torch.float32)
    # Autocast casts, for each operation: rounded inputs would round the residual stream.
    policy: Callable[..., MixedPrecisionPolicy] = partial(
        MixedPrecisionPolicy, reduce_dtype=averaged, cast_forward_inputs=False
    )
    if dtype is None or not can_gather_by_parameter():
        return policy()
    return policy(
        param_dtype=dtype,
        param_dtype_override_fn=lambda parameter: None if parameter.ndim > 1 else parameter.dtype,
    )


def can_gather_by_parameter() -> bool:
    """Whether this torch can gather the parameters of one block in several types (2.15 and later).

    Earlier ones would round the scales of norms with the matrices, which autocast leaves alone.
    """
    return "param_dtype_override_fn" in {field.name for field in fields(MixedPrecisionPolicy)}
