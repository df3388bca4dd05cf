"""Weights on disk: which checkpoint of a run is meant, what it holds, and how weights alone are written."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
from safetensors.torch import save_file
from torch import Tensor

from mmlab.parallel.stored import HEADER, REST, WEIGHTS, open_checkpoint

FOLDER = "checkpoints"
"""Of a run directory."""


class Weights(NamedTuple):
    """What a checkpoint says of the model."""

    state: dict[str, Tensor]
    """By name in the task; what is not trained may be left out."""
    bases: dict[str, str]
    """Digests of the pretrained networks that they were trained beside, by module path of the model."""
    stage: int = 0
    """How far a staged training had come."""


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that a run directory means: its best, or its last where no score chose one.

    Args:
        path: A run directory, or a checkpoint in any form, which is returned.

    Raises:
        ValueError: It is neither, or holds several checkpoints of which none is the one.
    """
    folder = path / FOLDER
    if not folder.is_dir():
        if path.is_file() or (path / REST).is_file():
            return path
        raise ValueError(f"{path}: neither a run directory (it has no {FOLDER}/) nor a checkpoint")
    found = sorted(p for p in folder.glob("[!.]*") if p.suffix in (".ckpt", ".safetensors"))
    last = folder / "last.ckpt"
    if not found:
        raise ValueError(f"{folder}: no checkpoint was saved")
    # The last one was saved after the best was known.
    if last in found:
        best = _best(last)
        return folder / best if best is not None and folder / best in found else last
    if len(found) > 1:
        raise ValueError(
            f"{folder}: {len(found)} checkpoints ({found[0].name}, ...) and no last.ckpt that knows the "
            "best: name one of them"
        )
    return found[0]


def _best(last: Path) -> str | None:
    """File name of the best checkpoint, as the last one knows it."""
    for key, state in open_checkpoint(last).rest.get("callbacks", {}).items():
        if key.startswith("ModelCheckpoint") and state.get("best_model_path"):
            return Path(state["best_model_path"]).name
    return None


def read_weights(path: Path) -> Weights:
    """Read the weights of a checkpoint in any form, not its optimizer; nothing in it is run.

    Raises:
        ValueError: It is no checkpoint.
    """
    stored = open_checkpoint(path)
    state = {name: stored.new(f"{WEIGHTS}{name}") for name in sorted(stored.weights)}
    said = stored.rest.get("adaptation", {})
    return Weights(state, dict(said.get("bases", {})), int(said.get("stage", 0)))


def write_weights(path: Path, weights: Weights) -> None:
    """Write weights as a safetensors file that `--ckpt_path` takes; it appears when it is complete."""
    rest = {
        "pytorch-lightning_version": L.__version__,
        "adaptation": {"bases": weights.bases, "stage": weights.stage},
    }
    # What shares memory with another tensor is refused.
    state = {name: value.detach().cpu().contiguous().clone() for name, value in weights.state.items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    save_file(state, temporary, metadata={"format": "pt", HEADER: json.dumps(rest)})
    temporary.chmod(0o644)  # safetensors makes files that only their owner can read
    os.replace(temporary, path)


def load_weights(task: L.LightningModule, weights: Weights) -> None:
    """Put the weights of a checkpoint into a task that was just built.

    Raises:
        ValueError: The checkpoint is of another model, adaptation or base.
    """
    checkpoint: dict[str, Any] = {
        "state_dict": weights.state,
        "adaptation": {"bases": weights.bases, "stage": weights.stage},
    }
    task.on_load_checkpoint(checkpoint)
    task.load_state_dict(_sized(checkpoint["state_dict"], task.state_dict()), strict=False)


def _sized(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Raise ValueError where a weight has another size than the task's."""
    for name, value in state.items():
        if name in own and value.shape != own[name].shape:
            raise ValueError(
                f"the checkpoint is of another model than the config builds: {name} has size "
                f"{tuple(value.shape)} there, {tuple(own[name].shape)} here"
            )
    return state
