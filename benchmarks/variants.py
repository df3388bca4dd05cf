"""Variants of an experiment under several seeds, each trained and tested once by `mmlab fit`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from mmlab.commands.adapt_compare import Plan, run_all

Metrics = Mapping[str, float | None]


def options(parser: argparse.ArgumentParser, *, quick: str) -> argparse.Namespace:
    """Add the options that such benchmarks share, and read the command line.

    Words that are none of them are in `words`, for every run: `--trainer.precision bf16-mixed`, which is
    faster on a processor that has bfloat16, and many times slower on one that has not.

    Args:
        parser: With the options of one's own.
        quick: What `--quick` does.
    """
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--runs", type=Path, help="keep the run directories here; stopped, it goes on")
    parser.epilog = "Other words go to every `mmlab fit`."
    arguments, arguments.words = parser.parse_known_args()
    return arguments


def train(
    config: Path, overlays: Mapping[str, Mapping[str, Any]], seeds: Sequence[int], words: list[str], out: Path
) -> dict[str, list[Path]]:
    """Run what has not finished; returns the run directories of each variant, one for each seed.

    Args:
        config: The experiment.
        overlays: By name of the variant, which its runs have too, what is other than in the experiment.
        seeds: Of the weights, the order and the random parts.
        words: For every run.
        out: Keeps the runs.
    """
    out = out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, overlay in overlays.items():
        files[name] = out / f"{name}.yaml"
        files[name].write_text(yaml.safe_dump({"test_untrained": False} | dict(overlay)), encoding="utf-8")
    found = run_all(Plan([str(config)], files, seeds, words, out))
    missing = [(name, seed) for name, runs in found.items() for seed, run in runs.items() if run is None]
    if missing:
        sys.exit(f"failed: {', '.join(f'{name}, seed {seed}' for name, seed in missing)}")
    return {name: [run for run in runs.values() if run is not None] for name, runs in found.items()}


def heading(seeds: Sequence[int], words: Sequence[str]) -> str:
    """What the runs of a table have in common."""
    more = f" {' '.join(words)}." if words else ""
    return f"Seeds {', '.join(map(str, seeds))}; threads: {torch.get_num_threads()}.{more}\n"


def metrics(run: Path) -> Metrics:
    """What a run reached on the test split."""
    found: Metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    return found


def minutes(run: Path) -> float:
    """From the start of training to the last score of the test split."""
    return ((run / "metrics.json").stat().st_mtime - (run / "trained.json").stat().st_mtime) / 60


def spread(values: Sequence[float], *, scale: float = 100.0, digits: int = 1) -> str:
    """Mean, lowest and highest; percent by default."""
    found = (sum(values) / len(values), min(values), max(values))
    mean, low, high = (f"{scale * value:.{digits}f}" for value in found)
    return mean if len(values) == 1 else f"{mean} ({low} to {high})"
