"""`mmlab adapt soup`: the average of what several runs have trained, measured beside each of them.

As heavy as training: `commands/adapt.py` imports it when the command runs.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml

from mmlab.commands.train import Parts, build
from mmlab.runs.checkpoint import Weights, find_checkpoint, load_weights, read_weights, write_weights
from mmlab.runs.new_folder import WEIGHTS_FILE, new_folder
from mmlab.runs.soup import Soup, average, check_alike, greedy

CONFIG = "config.yaml"


def run(arguments: argparse.Namespace) -> int:
    """Make a soup; returns the exit status.

    Raises:
        ValueError: The runs are of other models, adaptations or pretrained weights.
    """
    paths: list[Path] = arguments.runs
    if len(paths) < 2:
        raise ValueError(f"{paths[0]}: a soup needs at least two runs")
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice} is named twice: name each run once")
    configs = [_config(path) for path in paths]
    settings = [yaml.safe_load(config.read_text(encoding="utf-8")) for config in configs]
    _check_configs(paths, settings)
    found = {str(path): read_weights(find_checkpoint(path)) for path in paths}
    check_alike(found)
    monitor, mode = settings[0]["checkpoint"]["monitor"], settings[0]["checkpoint"]["mode"]
    if monitor is None:
        raise ValueError(f"{configs[0]}: no checkpoint.monitor, so there is no score to compare by")
    if arguments.out.exists() and not arguments.force:
        raise ValueError(f"{arguments.out} exists: --force replaces it")

    built = build(Parts, ["validate", "--config", str(configs[0]), "--init_from", "null"])

    def score(weights: Weights) -> float:
        load_weights(built.model, weights)
        built.trainer.validate(built.model, built.datamodule, verbose=False)
        return built.model.results[monitor]

    ingredients = list(found.values())
    scores = [score(weights) for weights in ingredients]
    for path, value in zip(paths, scores, strict=True):
        print(f"{monitor} {value:.4f}  {path}")
    if arguments.greedy:
        soup = greedy(ingredients, score, scores=scores, higher_is_better=mode == "max")
    else:
        weights = average(ingredients)
        soup = Soup(weights, list(range(len(paths))), score(weights))
    print(f"{monitor} {soup.score:.4f}  soup of {', '.join(str(paths[n]) for n in soup.members)}")
    if arguments.out.suffix == ".safetensors":
        write_weights(arguments.out, soup.weights)
        used, file = configs[0], arguments.out
    else:
        with new_folder(arguments.out, force=arguments.force) as folder:
            write_weights(folder / WEIGHTS_FILE, soup.weights)
            shutil.copyfile(configs[0], folder / CONFIG)
        used, file = arguments.out / CONFIG, arguments.out / WEIGHTS_FILE
    print(f"use it: mmlab test --config {used} --ckpt_path {file}")
    return 0


def _config(path: Path) -> Path:
    """The config of a run directory, or of the one that a checkpoint lies in."""
    folder = path if (path / CONFIG).is_file() else path.resolve().parent.parent
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{path}: neither a run directory of `mmlab fit` nor a checkpoint in one")
    return folder / CONFIG


def _check_configs(paths: list[Path], settings: list[dict[str, Any]]) -> None:
    """Raise ValueError for runs of other models; warn of runs that started from other weights."""
    first, *others = (config["model"]["init_args"] for config in settings)
    for path, other in zip(paths[1:], others, strict=True):
        for part in ("model", "adaptation"):
            if other[part] != first[part]:
                raise ValueError(
                    f"{paths[0]} and {path} are not of one {part}: only runs that differ in data, seed of "
                    "the data, or training can be averaged"
                )
    seeds = {str(config["seed_everything"]) for config in settings}
    if len(seeds) > 1:
        print(
            f"the runs started from other random weights (seed_everything {', '.join(sorted(seeds))}), whose "
            "average may be worse than each; use one seed_everything and several data.loading.seed",
            file=sys.stderr,
        )
