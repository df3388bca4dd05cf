"""The most memory that training has held."""

from __future__ import annotations

import resource
import sys

import torch

_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024


def peak_memory(device: torch.device) -> int:
    """Bytes: of tensors on a GPU, of the whole process else."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_UNIT


def reset_peak(device: torch.device) -> None:
    """Begin anew on a GPU; a process keeps its highest value."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def total_memory(device: torch.device) -> int | None:
    """Bytes of a GPU; None for what shares the memory of the machine."""
    return torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else None
