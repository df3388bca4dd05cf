"""How many floating-point operations a device can do in a second at most: known for GPUs, measured else."""

from __future__ import annotations

import re
import time
from functools import lru_cache
from typing import Literal, NamedTuple

import torch

Precision = Literal["bf16", "fp16", "tf32", "fp32", "fp64"]


class Peak(NamedTuple):
    """The most operations a second."""

    flops: float
    source: str
    """Where the number is from, for people."""


class _Rated(NamedTuple):
    """Dense 10^12 operations a second by NVIDIA's data sheets, with sums in float32; None: no unit for it."""

    bf16: float | None
    fp16: float
    tf32: float | None
    fp32: float


_RATED = {
    "B200": _Rated(2250, 2250, 1125, 75),
    "H200 NVL": _Rated(835, 835, 417, 60),
    "H200|GH200": _Rated(989, 989, 495, 67),
    "H100 NVL": _Rated(835, 835, 417, 60),
    "H100 PCIe": _Rated(756, 756, 378, 51),
    "H100": _Rated(989, 989, 495, 67),
    "A100|A800": _Rated(312, 312, 156, 19.5),
    "A40": _Rated(150, 150, 75, 37.4),
    "A30": _Rated(165, 165, 82, 10.3),
    "A10": _Rated(125, 125, 62.5, 31.2),
    "L40S": _Rated(362, 362, 183, 91.6),
    "L40": _Rated(181, 181, 90.5, 90.5),
    "L4": _Rated(121, 121, 60, 30.3),
    "RTX 5090": _Rated(209, 209, 105, 105),
    "RTX 4090": _Rated(165, 165, 82.6, 82.6),
    "RTX 3090": _Rated(71, 71, 35.6, 35.6),
    "V100": _Rated(None, 125, None, 15.7),
    "T4": _Rated(None, 65, None, 8.1),
}
"""By what the name of the device holds; the first that fits counts."""
_DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "tf32": torch.float32,
    "fp32": torch.float32,
    "fp64": torch.float64,
}
_PLAIN: Precision = "fp32"
_REPEATED = 5


def compute_precision(trainer_precision: str, device: torch.device) -> Precision:
    """What matrix products are computed in.

    Args:
        trainer_precision: As of Lightning's trainer: `bf16-mixed`, `32-true`, ...
        device: That computes.
    """
    if trainer_precision.startswith("bf16"):
        return "bf16"
    if trainer_precision.startswith("16"):
        return "fp16"
    if trainer_precision.startswith("64"):
        return "fp64"
    lowered = device.type == "cuda" and torch.get_float32_matmul_precision() != "highest"
    return "tf32" if lowered else "fp32"


def peak(device: torch.device, precision: Precision) -> Peak:
    """The most operations a second: by the data sheet, or else measured."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        rated = rated_peak(name, precision)
        if rated is not None:
            return Peak(rated, f"{name}, {precision}, by its data sheet")
        measured = _measured(device, precision, 8192)
        return Peak(measured, f"{name}, {precision}, measured by a matrix product")
    # Processors without units for it take a thousand times as long in low precision.
    candidates = {precision, precision if precision == "fp64" else _PLAIN}
    fastest = max(candidates, key=lambda candidate: _measured(device, candidate, 256))
    measured = _measured(device, fastest, 1024)
    return Peak(measured, f"{device.type}, {fastest}, measured by a matrix product")


def rated_peak(name: str, precision: Precision) -> float | None:
    """Operations a second by the data sheet of a GPU; None where it is not known."""
    for pattern, rated in _RATED.items():
        if re.search(rf"\b({pattern})\b", name):
            tera: float | None = getattr(rated, precision, None)
            return None if tera is None else tera * 1e12
    return None


@lru_cache
def _measured(device: torch.device, precision: Precision, size: int) -> float:
    """Operations a second of the fastest of some products of square matrices."""
    a = torch.ones(size, size, dtype=_DTYPES[precision], device=device)
    fastest = float("inf")
    with torch.inference_mode():
        for _ in range(_REPEATED):
            start = time.perf_counter()
            # One element on the host: the product is done by then.
            float((a @ a)[0, 0])
            fastest = min(fastest, time.perf_counter() - start)
    return 2 * size**3 / fastest
