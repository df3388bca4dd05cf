"""Weights on disk: which checkpoint of a run is meant, what it holds, and how weights alone are written."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
from safetensors.torch import save_file
from torch import Tensor

from mmlab.parallel.digests import PART, remove, rename, unfinished
from mmlab.parallel.stored import HEADER, REST, UNREADABLE, WEIGHTS, damage, finish_rename, open_checkpoint

_log = logging.getLogger(__name__)

FOLDER = "checkpoints"
"""Of a run directory."""
DAMAGED = ".damaged"
"""What is added to the name of a checkpoint that is set aside."""
STILL = 600.0
"""Seconds after which an unfinished file of another machine, not touched since, is one of a dead process."""
_WRITER = re.compile(r"\..+\.(\d+)@(.+)" + re.escape(PART))


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


def newest_good(folder: Path, *, tidy: bool = True) -> Path | None:
    """The newest whole checkpoint in a folder from which training can go on, or None.

    The newest is the one of the most steps, of equal ones the one written last. Each is read until one is
    whole; see :func:`~mmlab.parallel.stored.damage`. Weights alone are none of these.

    Args:
        folder: `checkpoints` of a run.
        tidy: For the one process that is about to go on with the run: what is damaged and newer is set aside
            as `NAME.damaged`, saves that were cut off are brought to an end, and what they left is removed.
            Without it nothing is changed.
    """
    if not folder.is_dir():
        return None
    if tidy:
        _clear(folder)
    steps: dict[Path, tuple[int, int]] = {}
    damaged: dict[Path, str] = {}
    for path in sorted(folder.glob("[!.]*.ckpt")):
        try:
            rest = open_checkpoint(path).rest
        except UNREADABLE:
            damaged[path] = damage(path) or "it could not be read"
            continue
        if "optimizer_states" in rest:
            steps[path] = int(rest.get("global_step", -1)), path.stat().st_mtime_ns
    good = None
    for path in sorted(steps, key=steps.__getitem__, reverse=True):
        reason = damage(path)
        if reason is None:
            good = path
            break
        damaged[path] = reason
    if tidy:
        for path, reason in damaged.items():
            _set_aside(path, reason, good)
    return good


def whole_checkpoint(path: Path, *, go_on: bool, aside: bool = True) -> Path:
    """A checkpoint that a user named, or the newest good one beside it where that one is damaged.

    Args:
        path: It exists.
        go_on: Training goes on with it: what is damaged may be set aside. Else a damaged one is an error.
        aside: False for a rank that leaves this to another one, which may have done it already.

    Raises:
        ValueError: It is damaged, or none, and no other may stand for it.
    """
    reason = damage(path)
    if reason is None:
        return path
    good = newest_good(path.parent, tidy=False)
    if good is None or not go_on or path.suffix != ".ckpt":
        other = "" if good is None else f"; the newest good one beside it is {good}"
        raise ValueError(f"checkpoint {path}: {reason}{other}")
    if aside:
        _set_aside(path, reason, good)
    return good


def _set_aside(path: Path, reason: str, instead: Path | None) -> None:
    used = "no other is whole" if instead is None else f"{instead.name} is used instead"
    aside = rename(path, path.name + DAMAGED)
    _log.warning("checkpoint %s is damaged: %s. It is set aside as %s; %s", path, reason, aside.name, used)


def _clear(folder: Path) -> None:
    """Bring renames that were cut off to an end, and remove what dead processes have left."""
    for pattern in (f".*.ckpt{PART}", ".*.ckpt.old"):
        for path in sorted(folder.glob(pattern)):
            if _WRITER.fullmatch(path.name) is None:
                finish_rename(folder / path.name.removeprefix(".").removesuffix(PART).removesuffix(".old"))
    for path in [*folder.glob(f".*{PART}"), *folder.glob(".*.old")]:
        if not _is_written(path):
            remove(path)
    for path in folder.glob("[!.]*.ckpt.sha256"):
        if not path.with_suffix("").exists():
            path.unlink()


def _is_written(path: Path) -> bool:
    """Whether a process that lives may be writing an unfinished file."""
    match = _WRITER.fullmatch(path.name)
    if match is None or int(match[1]) == os.getpid():  # this one has not begun to
        return False
    if match[2] != socket.gethostname():
        return time.time() - path.stat().st_mtime < STILL
    try:
        os.kill(int(match[1]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


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
    temporary = unfinished(path)
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
