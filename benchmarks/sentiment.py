"""Are three modalities better than one? CMU-MOSI, negative or positive, three seeds.

    python benchmarks/sentiment.py --mosi DIR             words, voice, face alone, fusions, kept in balance
    python benchmarks/sentiment.py --mosi DIR --quick     one seed, one epoch of each: all of it runs
    python benchmarks/sentiment.py --mosi DIR --runs DIR  keep the runs; stopped, it goes on

The features are those of Poria et al. (2017). Prints a Markdown table: accuracy on the test split as the mean
over seeds with the lowest and the highest, the 95 % interval over test videos of the first seed, and the same
where half of the modalities are missing. The ratio is that of the experiment's fusion to the best modality.
Gradient-Blend needs validation samples: `held out` is the experiment without these videos, to compare with.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from variants import heading, metrics, options, spread, train

from mmlab.sources.mosi import Mosi

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
CONFIG = EXPERIMENTS / "sentiment" / "mosi.yaml"
SCORE = "test/accuracy"
TOWERS = {"text": "words", "audio": "voice", "image": "face"}
WHOLE = "concatenation"
QUICK = ["--trainer.max_epochs", "1"]
FUSIONS: dict[str, dict[str, Any]] = {
    "gated": {"class_path": "mmlab.models.fusion.weighted_sum.WeightedSumFusion"},
    "low_rank_tensor": {"class_path": "mmlab.models.fusion.tensor.LowRankTensorFusion"},
    "transformer": {"class_path": "mmlab.models.fusion.transformer.TransformerFusion"},
    "bottleneck": {"class_path": "mmlab.models.fusion.bottleneck.BottleneckFusion"},
    "crossmodal": {"class_path": "mmlab.models.fusion.crossmodal.CrossmodalFusion"},
}


def model(**parts: Any) -> dict[str, Any]:
    """An overlay for the model."""
    return {"model": {"init_args": {"model": {"init_args": parts}}}}


def alone(modality: str) -> dict[str, Any]:
    """An overlay in which one modality is read."""
    others = [name for name in TOWERS if name != modality]
    fusion = {"init_args": {"dims": {modality: 64}}}
    return {
        **model(**dict.fromkeys(others), fusion=fusion, modality_dropout=0.0),
        "data": dict.fromkeys(others),
    }


def base(name: str) -> dict[str, Any]:
    """An overlay of all experiments."""
    found: dict[str, Any] = yaml.safe_load(
        (EXPERIMENTS / "_base" / f"{name}.yaml").read_text(encoding="utf-8")
    )
    return found


HELD_OUT = {"data": {"source": {"init_args": {"val": 10}}}}
OVERLAYS: dict[str, dict[str, Any]] = {
    **{name: alone(modality) for modality, name in TOWERS.items()},
    WHOLE: {},
    **{
        name: model(
            fusion={**fusion, "init_args": {"dims": dict.fromkeys(TOWERS, 64), "dim": 64, "dropout": 0.3}}
        )
        for name, fusion in FUSIONS.items()
    },
    "ogm_ge": base("ogm_ge"),
    "held_out": HELD_OUT,
    "gradient_blend": base("gradient_blend") | HELD_OUT,
}


def halved(run: Path) -> float:
    """Accuracy where half of the modalities are missing."""
    curve: list[Mapping[str, float]] = json.loads((run / "robustness.json").read_text(encoding="utf-8"))
    return next(point["accuracy"] for point in curve if point["missing"] == 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mosi", type=Path, help="its release; default: what was prepared before")
    arguments = options(parser, quick="one seed, one epoch of each")
    seeds = arguments.seeds[:1] if arguments.quick else arguments.seeds
    words = [*(QUICK if arguments.quick else []), *arguments.words]
    for val in (0, HELD_OUT["data"]["source"]["init_args"]["val"]):
        Mosi(val=val, from_file=arguments.mosi).prepare()
    with tempfile.TemporaryDirectory() as scratch:
        runs = train(CONFIG, OVERLAYS, seeds, words, arguments.runs or Path(scratch))
        found = {name: [metrics(run) for run in directories] for name, directories in runs.items()}
        half = {name: [halved(run) for run in directories] for name, directories in runs.items()}
    print(heading(seeds, arguments.words))
    print("| MOSI, negative or positive | accuracy, % | 95 % | half missing, % |\n|---|---|---|---|")
    means = {}
    for name, results in found.items():
        scores = [result[SCORE] or 0.0 for result in results]
        low, high = (100 * (results[0][f"{SCORE}_{end}"] or 0.0) for end in ("low", "high"))
        title = name.replace("_", " ")
        print(f"| {title} | {spread(scores)} | {low:.1f} to {high:.1f} | {spread(half[name])} |")
        means[name] = sum(scores) / len(scores)
    best = max(means[name] for name in TOWERS.values())
    ratio = means[WHOLE] / best
    print(f"sentiment ratio={ratio:.2f} bar=1.0 {'ok' if ratio >= 1 else 'short'}")


if __name__ == "__main__":
    main()
