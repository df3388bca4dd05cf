"""`mmlab runs`: what a run has left behind."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `mmlab runs consolidate`."""
    parser = verbs.add_parser("runs", help="what runs have left behind: consolidate checkpoints")
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    consolidate = actions.add_parser(
        "consolidate",
        help="one safetensors file from a checkpoint, also one that several ranks wrote",
        description="Write the weights of a checkpoint into one safetensors file: what was trained, or all, "
        "as the adaptation says. Its header names what they were trained beside. `mmlab test --ckpt_path "
        "FILE` takes it.",
    )
    consolidate.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="a checkpoint (file or folder), or a run directory: its best checkpoint, else its newest",
    )
    consolidate.add_argument("--out", type=Path, required=True, metavar="FILE.safetensors")
    consolidate.set_defaults(run=_consolidate)


def _consolidate(arguments: argparse.Namespace) -> int:
    from mmlab.parallel.consolidate import consolidate

    done = consolidate(arguments.checkpoint, arguments.out)
    print(
        f"{arguments.out}: {done.tensors} tensors, {done.size / 1e6:.1f} MB, from {done.checkpoint} (step "
        f"{done.step})"
    )
    return 0
