"""`mmlab tune`: settings that depend on the machine, found by trying."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from mmlab.commands.action import ActionParser

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `mmlab tune batch`."""
    parser = verbs.add_parser(
        "tune",
        help="settings that depend on the machine, found by trying: batch",
        description="Finds settings by trying them on this machine.",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True, parser_class=ActionParser)
    batch = actions.add_parser(
        "batch",
        help="how many samples the model of a config can take at once",
        usage="mmlab tune batch --config FILE [--config FILE ...] [--key value ...] [--memory SIZE] "
        "[--out FILE] [--fresh]",
        description="Trains some steps of a config with its own data, in parts of its batch, and finds the "
        "largest part that fits: execution.micro_batch. The batch, and so the gradients, stay as they are. "
        "Rows are as long as the readers allow; where the data are bucketed by length, each bucket is tried. "
        "What was found is kept for this device, release of torch and config.",
        allow_abbrev=False,
    )
    batch.add_argument(
        "--config", action="append", required=True, metavar="FILE", help="as for `mmlab fit`; may be repeated"
    )
    batch.add_argument(
        "--memory", type=memory_size, metavar="SIZE",
        help="that training may take, such as 8GB; default: 92 %% of what is free on a GPU, 80 %% on a CPU",
    )  # fmt: skip
    batch.add_argument(
        "--out", type=Path, metavar="FILE", help="where the overlay is written; default: the cache"
    )
    batch.add_argument("--fresh", action="store_true", help="measure anew what is known")
    batch.set_defaults(run=_batch, words=[])


def memory_size(text: str) -> int:
    """Bytes of `8GB`, `512 MiB`, `1.5g`."""
    match = re.fullmatch(r"([\d.]+)\s*([kMGT]?i?)B?", text.strip(), re.IGNORECASE)
    units = {unit.lower(): size for unit, size in _UNITS.items()}
    if match is None or match[2].lower() not in units or match[1].count(".") > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write such as 8GB or 512MiB")
    size = int(float(match[1]) * units[match[2].lower()])
    if size < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: must be above 0")
    return size


def _batch(arguments: argparse.Namespace) -> int:
    # As heavy as training.
    from mmlab.commands import tune_batch

    return tune_batch.run(arguments)
