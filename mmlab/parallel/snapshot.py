"""A copy of a checkpoint as it is now, in the memory of the host, where there is room for it."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._pytree import tree_leaves


def snapshot(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Copy all of a checkpoint: tensors to the host, the rest as it is; what shares memory still does.

    Args:
        checkpoint: Tensors in dictionaries, lists and tuples, and whatever can be copied.
    """
    copies: dict[int, Any] = {}
    storages: dict[int, torch.UntypedStorage] = {}
    for tensor in tree_leaves(dict(checkpoint)):
        if _is_plain(tensor):
            held = tensor.untyped_storage()
            if held._cdata not in storages:
                storages[held._cdata] = held.clone() if tensor.device.type == "cpu" else held.cpu()
            copy = torch.empty(0, dtype=tensor.dtype)
            copy.set_(storages[held._cdata], tensor.storage_offset(), tensor.size(), tensor.stride())
            copies[id(tensor)] = copy
    return deepcopy(dict(checkpoint), copies)


def _is_plain(leaf: Any) -> bool:
    """Whether a leaf is a tensor that is nothing but its memory."""
    return (
        type(leaf) in (Tensor, Parameter)
        and leaf.layout is torch.strided
        and not (leaf.is_conj() or leaf.is_neg() or leaf.is_meta or leaf.is_quantized)
    )


def size_of(tree: Any) -> int:
    """Bytes of the tensors in dictionaries, lists and tuples; of a sharded one, of all its shards."""
    storages: dict[int, int] = {}
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor):
            plain = _is_plain(leaf)
            key = leaf.untyped_storage()._cdata if plain else id(leaf)
            storages[key] = leaf.untyped_storage().nbytes() if plain else leaf.numel() * leaf.element_size()
    return sum(storages.values())


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that this process may still take, as the system and its control groups say; 0 if unknown.

    Args:
        root: Where `proc` and `sys` are.
    """
    try:
        lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    sizes = {name: int(value.split()[0]) for name, value in (line.split(":", 1) for line in lines)}
    left = [1024 * sizes.get("MemAvailable", 0)]
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            left += _left(root / "sys/fs/cgroup", path, "memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            top = root / "sys/fs/cgroup/memory"
            left += _left(top, path, "memory.limit_in_bytes", "memory.usage_in_bytes")
    return max(0, min(left))


def _left(top: Path, path: str, limit: str, usage: str) -> list[int]:
    """Bytes left to a control group and to each of those that it is in."""
    found = []
    folder = top / path.lstrip("/")
    for group in (folder, *folder.parents):
        if group != top and top not in group.parents:
            break
        try:
            most = (group / limit).read_text(encoding="ascii").strip()
            used = int((group / usage).read_text(encoding="ascii"))
            stat = (group / "memory.stat").read_text(encoding="ascii").split()
        except OSError:  # the topmost has no limit, and in a container the path may be another one
            continue
        values = dict(zip(stat[::2], stat[1::2], strict=True))
        if most != "max":
            # Pages of files are given back when memory is short.
            found.append(int(most) - used + int(values.get("inactive_file", 0)))
    return found
