"""One safetensors file from a checkpoint of any form, without the ranks that wrote it."""

from __future__ import annotations

import json
import math
import os
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mmlab.parallel.stored import HEADER, REST, TYPES, WEIGHTS, Stored, open_checkpoint

_CODES = {dtype: code for code, dtype in TYPES.items()}
_KEPT = ("adaptation", "epoch", "global_step", "pytorch-lightning_version")
"""What a later `--ckpt_path FILE` needs beside the weights."""


class Consolidated(NamedTuple):
    """What was written."""

    checkpoint: Path
    """The one that was read."""
    tensors: int
    size: int
    """Bytes of the file."""
    step: int
    """Optimizer steps that the weights have seen."""


def consolidate(source: Path, out: Path) -> Consolidated:
    """Write the weights of a checkpoint into one file, one tensor in memory at a time.

    The file holds what the checkpoint holds: what was trained, or all weights, as the adaptation says. The
    entry `mmlab` of its header says as JSON what they are, with the digests of the pretrained networks that
    they were trained beside. `--ckpt_path` takes it to validate, test and predict.

    Args:
        source: A checkpoint (file or folder), or a run directory; see :func:`find_checkpoint`.
        out: Ends in `.safetensors`. It appears under this name when it is complete.

    Raises:
        ValueError: There is no checkpoint, `out` has another ending, or a tensor's type has no name there.
    """
    if out.suffix != ".safetensors":
        raise ValueError(f"--out {out}: give the file a name that ends in .safetensors")
    checkpoint = find_checkpoint(source)
    stored = open_checkpoint(checkpoint)
    header = _header(stored)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with unfinished.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in header:
                if name != "__metadata__":
                    tensor = stored.new(f"{WEIGHTS}{name}")
                    file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
        os.replace(unfinished, out)
    finally:
        unfinished.unlink(missing_ok=True)
    step = int(stored.rest.get("global_step", 0))
    return Consolidated(checkpoint, len(header) - 1, out.stat().st_size, step)


def _header(stored: Stored) -> dict[str, Any]:
    """Names, types, sizes and places of the weights, as https://github.com/huggingface/safetensors says."""
    about = {key: stored.rest[key] for key in _KEPT if key in stored.rest}
    about["mmlab"] = metadata.version("mmlab")
    about["task"] = stored.rest.get("hyper_parameters", {}).get("_class_path")
    header: dict[str, Any] = {"__metadata__": {"format": "pt", HEADER: json.dumps(about)}}
    shapes = {name: stored.shapes[f"{WEIGHTS}{name}"] for name in stored.weights}
    place = 0
    # Widest types first: every tensor then begins at a multiple of its width.
    for name, shape in sorted(shapes.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
        if shape.dtype not in _CODES:
            raise ValueError(f"{name} is {shape.dtype}, which a safetensors file cannot hold")
        end = place + math.prod(shape.size) * shape.dtype.itemsize
        header[name] = {
            "dtype": _CODES[shape.dtype],
            "shape": list(shape.size),
            "data_offsets": [place, end],
        }
        place = end
    return header


def find_checkpoint(path: Path) -> Path:
    """The checkpoint itself, or of a run directory the best one: else, where no score chose one, the newest.

    Raises:
        ValueError: There is none.
    """
    if path.is_file() or (path / REST).is_file():
        return path
    folder = path / "checkpoints"
    found = sorted(folder.glob("*.ckpt"), key=lambda file: file.stat().st_mtime) if folder.is_dir() else []
    if not found:
        raise ValueError(f"{path}: neither a checkpoint nor a run directory with checkpoints in it")
    for callback in open_checkpoint(found[-1]).rest.get("callbacks", {}).values():
        best = folder / Path(str(callback.get("best_model_path") or ".")).name
        if best in found and callback.get("monitor") is not None:
            return best
    return found[-1]
