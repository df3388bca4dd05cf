"""`mmlab adapt merge`: a trained run becomes plain weights, a config that loads them, and encoder folders.

As heavy as training: `commands/adapt.py` imports it when the command runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor
from torch.utils._pytree import tree_leaves

from mmlab.adaptation.method import within
from mmlab.batch import Batch, Input
from mmlab.commands.train import Parts, build
from mmlab.data.module import ShardData
from mmlab.models.encoders.encoder import Encoder
from mmlab.models.export import export_encoder
from mmlab.runs.checkpoint import Weights, find_checkpoint, load_weights, read_weights, write_weights
from mmlab.runs.new_folder import WEIGHTS_FILE, new_folder
from mmlab.tasks.base import BaseTask

CONFIG = "config.yaml"
# Read in this process, and as the encoders read them: cached features would not show what an encoder does.
# The checkpoint holds what the run began with.
_RAW = ("--data.loading.features", "null", "--data.loading.num_workers", "0", "--init_from", "null")


class Merged(NamedTuple):
    """What merging did to a task."""

    changed: set[str]
    """Parts of which something was folded."""
    kept: list[str]
    """Parts that no plain weight can stand for."""
    difference: float
    """Largest difference of any output before and after."""


def run(arguments: argparse.Namespace) -> int:
    """Merge a run; returns the exit status.

    Raises:
        ValueError: There is no such run, its output would change, or the folder exists.
    """
    config = arguments.run_directory / CONFIG
    if not config.is_file():
        raise ValueError(f"{arguments.run_directory}: no run directory of `mmlab fit` (it has no {CONFIG})")
    checkpoint = find_checkpoint(arguments.run_directory if arguments.ckpt is None else arguments.ckpt)
    with new_folder(arguments.out, force=arguments.force) as folder:
        built = build(Parts, ["fit", "--config", str(config), *_RAW])
        task = built.model
        load_weights(task, read_weights(checkpoint))
        # Weights that were trained beside rounded ones are merged into these, in float32.
        task.float()
        batch = first_batch(built.datamodule)
        merged = merge(task, batch)
        what = "generated inputs of its encoders" if batch is None else f"{len(batch)} samples"
        print(f"{checkpoint}: largest difference of outputs on {what}: {merged.difference:.2g}")
        if not merged.difference <= arguments.tolerance:
            raise ValueError(
                f"merging changes an output by {merged.difference:.2g}, more than --tolerance "
                f"{arguments.tolerance:g}: nothing was written"
            )
        for part in merged.kept:
            print(f"{part} keeps its method: no plain weight can stand for what that added")
        write_weights(folder / WEIGHTS_FILE, Weights(task.state_dict(), {}))
        settings = yaml.safe_load(config.read_text(encoding="utf-8"))
        simplify(settings["model"]["init_args"]["adaptation"]["init_args"], task, merged.changed)
        (folder / CONFIG).write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
        _check(folder, task, batch)
        exported = _export(task, folder, merged.kept)
    print(f"encoders as folders: {', '.join(str(arguments.out / name) for name in exported) or 'none'}")
    print(f"use it: mmlab test --config {arguments.out / CONFIG} --ckpt_path {arguments.out / WEIGHTS_FILE}")
    return 0


def merge(task: BaseTask, batch: Batch | None) -> Merged:
    """Merge a task in place, and compare its outputs.

    Args:
        task: With its weights.
        batch: What it is run on; None: its encoders are, on noise.
    """
    before, names = outputs(task, batch), set(task.model.state_dict())
    kept = task.adaptation.merge(task.model)
    after, now = outputs(task, batch), set(task.model.state_dict())
    difference = max(float((a - b).abs().max()) for a, b in zip(before, after, strict=True))
    moved = names ^ now
    parts = [path for path, _, _ in task.adaptation.methods(task.model)]
    return Merged({path for path in parts if any(within(name, path) for name in moved)}, kept, difference)


@torch.no_grad()
def outputs(task: BaseTask, batch: Batch | None) -> list[Tensor]:
    """What a model gives in evaluation mode, as float64; its encoders, where no batch is read."""
    task.eval()
    if batch is not None:
        found = tree_leaves(task.model(batch))
    else:
        encoders = [module for module in task.model.modules() if isinstance(module, Encoder)]
        found = tree_leaves([encoder(_noise(encoder)) for encoder in encoders])
    return [leaf.double() for leaf in found if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _noise(encoder: Encoder) -> Input:
    """An input of an encoder, the same each time."""
    example = encoder.example()
    generator = torch.Generator().manual_seed(0)
    if example.data.is_floating_point():
        return replace(example, data=torch.randn(example.data.shape, generator=generator).clamp(-1, 1))
    most = 256 if example.data.dtype == torch.uint8 else 2
    data = torch.randint(most, example.data.shape, generator=generator, dtype=example.data.dtype)
    return replace(example, data=data)


def first_batch(data: ShardData) -> Batch | None:
    """The first validation batch; None, and a line that says why, where it cannot be read."""
    try:
        data.prepare_data()
        data.setup("validate")
        return next(iter(data.val_dataloader()))
    except (OSError, ValueError) as error:
        print(f"no validation samples: {error}", file=sys.stderr)
        return None
    finally:
        data.teardown("validate")


def simplify(policy: dict[str, Any], task: BaseTask, changed: set[str]) -> None:
    """Say in the settings of a policy that merged parts are plain; what is not changed keeps its method.

    Args:
        policy: Arguments of :class:`~mmlab.adaptation.policy.Policy`, as in a config; altered.
        task: Built from it.
        changed: Parts of which something was folded.
    """
    given = policy["towers"] if isinstance(policy["towers"], dict) else {"*": policy["towers"]}
    keys = [key for key in given if key != "*"]
    parts = [path for path, _, _ in task.adaptation.methods(task.model)]
    policy["towers"] = {
        path: "frozen"
        if path in changed
        else given[next((key for key in keys if fnmatchcase(path, key)), "*")]
        for path in parts
    }
    # Merged weights must not be rounded as pretrained ones were.
    policy["frozen_dtype"] = None


def _check(folder: Path, task: BaseTask, batch: Batch | None) -> None:
    """Read what was written, as a user does, and raise ValueError unless it gives the same."""
    again = build(Parts, ["test", "--config", str(folder / CONFIG), *_RAW]).model
    load_weights(again, read_weights(folder / WEIGHTS_FILE))
    for wanted, found in zip(outputs(task, batch), outputs(again, batch), strict=True):
        if not torch.equal(wanted, found):
            raise ValueError(
                "what was written gives other outputs when it is read again: a part of the model is built "
                "with random numbers that no checkpoint holds"
            )


def _export(task: BaseTask, folder: Path, kept: Sequence[str]) -> list[str]:
    """Write each plain pretrained encoder as a folder; returns their names."""
    found = []
    for path, module in task.model.named_modules():
        adapted = any(within(path, part) or within(part, path) for part in kept)
        name = path.removesuffix(".encoder").replace(".", "-")
        if isinstance(module, Encoder) and not adapted and export_encoder(module, folder / name):
            found.append(name)
    return found
