"""What does transfer bring? Retrieval on unseen stamps: pretrained encoders beside random ones, three seeds.

    python benchmarks/stamps.py                  six runs of experiments/retrieval/stamps.yaml
    python benchmarks/stamps.py --scratch        beside random encoders that are trained whole (hours)
    python benchmarks/stamps.py --quick          one seed of each, two epochs

By default the random encoders are frozen as the pretrained ones are: all that differs is what they know.

Prints a Markdown table: the mean over seeds with the lowest and the highest, and for the pretrained model the
95 % interval over test captions of the first seed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "experiments" / "retrieval" / "stamps.yaml"
ENCODERS = ("image", "text", "audio")
DIRECTIONS = (
    "image_to_text",
    "text_to_image",
    "audio_to_image",
    "image_to_audio",
    "audio_to_text",
    "text_to_audio",
)
BAR = {"r1": 0.15, "r10": 0.50}


def run(name: str, seed: int, *, extra: list[str], quick: bool, folder: Path) -> dict[str, float]:
    """Train and test once with the command of the README; returns its metrics.json."""
    command = [sys.executable, "-m", "mmlab", "fit", "--config", str(CONFIG), "--runs", str(folder)]
    command += ["--name", f"{name}-{seed}", "--seed_everything", str(seed), "--data.loading.seed", str(seed)]
    command += ["--test_untrained", "false"]
    if quick:
        command += ["--trainer.max_epochs", "2"]
    command += extra
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    (metrics,) = folder.glob(f"{name}-{seed}/*/metrics.json")
    results: dict[str, float] = json.loads(metrics.read_text())
    return results


def random_encoders(*, trained: bool) -> list[str]:
    """The options that start every encoder from random weights."""
    towers = "--model.init_args.model.init_args"
    options = [f"{towers}.{encoder}.init_args.encoder.init_args.pretrained=false" for encoder in ENCODERS]
    if trained:
        # With batch statistics of its own: the frozen ones of a random network mean nothing.
        options += [f"{towers}.image.init_args.encoder.init_args.freeze_batch_norm=false"]
        options += ["--config", str(ROOT / "experiments" / "_base" / "full.yaml")]
    return options


def spread(values: list[float]) -> str:
    """Mean, lowest and highest, in percent."""
    mean = sum(values) / len(values)
    return f"{100 * mean:.1f} ({100 * min(values):.1f}-{100 * max(values):.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one seed, two epochs")
    parser.add_argument("--scratch", action="store_true", help="train the random encoders")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--runs", type=Path, help="keep the run directories here")
    arguments = parser.parse_args()
    variants = {"pretrained": [], "random": random_encoders(trained=arguments.scratch)}
    seeds = arguments.seeds[:1] if arguments.quick else arguments.seeds
    with tempfile.TemporaryDirectory() as scratch:
        folder = (arguments.runs or Path(scratch)).absolute()
        results = {
            name: [run(name, seed, extra=extra, quick=arguments.quick, folder=folder) for seed in seeds]
            for name, extra in variants.items()
        }
    print(
        f"Seeds {', '.join(map(str, seeds))}: mean (lowest-highest) in percent; median rank of the first.\n"
    )
    print("| direction | R@1 | 95 % | R@10 | 95 % | median rank | random: R@1 | R@10 | chance R@1 | R@10 |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for direction in DIRECTIONS:
        first = results["pretrained"][0]
        at = f"test/{direction}"
        columns = [direction.replace("_", " ")]
        for k in ("r1", "r10"):
            columns.append(spread([found[f"{at}/{k}"] for found in results["pretrained"]]))
            columns.append(f"{100 * first[f'{at}/{k}_low']:.0f}-{100 * first[f'{at}/{k}_high']:.0f}")
        columns.append(f"{first[f'{at}/median_rank']:.1f}")
        columns += [spread([found[f"{at}/{k}"] for found in results["random"]]) for k in ("r1", "r10")]
        columns += [f"{100 * first[f'{at}/chance_{k}']:.1f}" for k in ("r1", "r10")]
        print("| " + " | ".join(columns) + " |")
    worst = min(
        found[f"test/{direction}/{k}"] / bar
        for found in results["pretrained"]
        for direction in ("image_to_text", "text_to_image")
        for k, bar in BAR.items()
    )
    print(f"stamps ratio={worst:.2f} bar=1.0 {'ok' if worst >= 1 else 'short'}")


if __name__ == "__main__":
    main()
