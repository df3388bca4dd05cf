"""Is pretraining worth it where labels are few? Stamps: all pairs without labels, then a tenth with, three seeds.

    python benchmarks/pretraining.py             pretraining, then retrieval and categories with and without it
    python benchmarks/pretraining.py --quick     one seed, one epoch of each: all of it runs
    python benchmarks/pretraining.py --runs DIR  keep the runs; stopped, it goes on

Pretraining is experiments/pretraining/stamps.yaml on all training pictures and captions. Then, on a tenth of the
training samples (`data.splits.train_share`, another tenth for each seed), experiments/retrieval/transfer.yaml is
trained from its projections and encoders (`init_from`), and a classifier of the eleven commonest categories, which
pretraining never saw; beside both the same from the encoders of the assets, which know ImageNet and sentences.
Encoders are frozen in all of these: what differs is what they know.

Prints a Markdown table: the mean over seeds with the lowest and the highest, and the 95 % interval over test samples
of the first seed. The ratio is the smaller of the two gains.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from variants import heading, metrics, options, spread, train

ROOT = Path(__file__).parents[1]
PRETRAINING = ROOT / "experiments" / "pretraining" / "stamps.yaml"
RETRIEVAL = ROOT / "experiments" / "retrieval" / "transfer.yaml"
CATEGORIES = [
    "animals/birds", "animals/insects", "animals/mammals", "food/fruit", "food/vegetables", "household/tools",
    "plants/flowers", "seasonal/christmas", "seasonal/halloween", "town/houses", "town/roadsigns",
]  # fmt: skip
"""Those with ten training pictures at least."""
TASKS = {"retrieval": "test/mean_recall", "category": "test/accuracy"}
EPOCHS = {"pretraining": 8, "retrieval": 12, "category": 20}
SHARE = 0.1


def part(name: str, **settings: Any) -> dict[str, Any]:
    """A class of mmlab and its arguments, as in a config."""
    return {"class_path": f"mmlab.{name}", "init_args": settings}


def category() -> dict[str, Any]:
    """The config of a classifier of pictures."""
    retrieval: dict[str, Any] = yaml.safe_load(RETRIEVAL.read_text(encoding="utf-8"))
    encoder = part("models.encoders.image.ImageEncoder", name="efficientnet-lite0")
    data = {name: value for name, value in retrieval["data"].items() if name != "text"}
    return {
        "name": "category",
        "seed_everything": 1,
        "model": part(
            "tasks.sentiment.SentimentTask",
            outcome=part("tasks.outcome.Classes", labels=CATEGORIES, others="leave_out"),
            model=part(
                "models.fusion_classifier.FusionClassifier",
                image=part("models.fusion.tower.FusionTower", encoder=encoder),
                fusion=part("models.fusion.projection.ProjectionFusion", dims={"image": 1280}, dim=256),
                head=part("models.heads.ClassificationHead", dim=256, classes=len(CATEGORIES)),
            ),
            adaptation=part("adaptation.policy.Policy", towers="frozen"),
            optimization=retrieval["model"]["init_args"]["optimization"],
        ),
        "data": data | {"loading": data["loading"] | {"references": ["json.category"]}},
        "trainer": retrieval["trainer"],
        "checkpoint": {"monitor": "val/accuracy", "mode": "max"},
    }


def overlay(task: str, seed: int, *, epochs: int) -> dict[str, Any]:
    """What fine-tuning on a tenth has of its own; the last weights are tested, whatever validation says."""
    return {
        "data": {"batch_size": 12, "splits": {"train_share": SHARE, "share_seed": seed}},
        "trainer": {"max_epochs": epochs, "check_val_every_n_epoch": epochs},
    }


def tuned(
    seed: int, pretrained: Path, out: Path, arguments: argparse.Namespace
) -> dict[str, Mapping[str, Any]]:
    """Results of each task with pretraining and without, by `task start`."""
    (out / "category.yaml").write_text(yaml.safe_dump(category()), encoding="utf-8")
    configs = {"retrieval": RETRIEVAL, "category": out / "category.yaml"}
    found = {}
    for task, config in configs.items():
        plain = overlay(task, seed, epochs=1 if arguments.quick else EPOCHS[task])
        starts = {"without": plain, "with": plain | {"init_from": str(pretrained)}}
        folder = out / f"{task}-{seed}"
        for start, (run,) in train(config, starts, [seed], arguments.words, folder).items():
            found[f"{task} {start}"] = metrics(run)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments = options(parser, quick="one seed, one epoch of each")
    seeds = arguments.seeds[:1] if arguments.quick else arguments.seeds
    epochs = 1 if arguments.quick else EPOCHS["pretraining"]
    pretraining = {"trainer": {"max_epochs": epochs, "check_val_every_n_epoch": epochs}}
    with tempfile.TemporaryDirectory() as scratch:
        out = (arguments.runs or Path(scratch)).absolute()
        results = []
        for seed in seeds:
            runs = train(PRETRAINING, {"pretraining": pretraining}, [seed], arguments.words, out)
            results.append(tuned(seed, runs["pretraining"][0], out, arguments))
    print(heading(seeds, arguments.words))
    print(
        "| a tenth of the training samples | without | 95 % | pretrained | 95 % | ratio |\n|---|---|---|---|---|---|"
    )
    ratios = []
    for task, score in TASKS.items():
        cells, means = [], []
        for start in ("without", "with"):
            found = [result[f"{task} {start}"] for result in results]
            low, high = (100 * found[0][f"{score}_{end}"] for end in ("low", "high"))
            cells += [spread([one[score] for one in found]), f"{low:.1f} to {high:.1f}"]
            means.append(sum(one[score] for one in found) / len(found))
        ratios.append(means[1] / means[0])
        name = score.removeprefix("test/").replace("_", " ")
        print(f"| {task}, {name}, % | {' | '.join(cells)} | {ratios[-1]:.2f} |")
    ratio = min(ratios)
    print(f"pretraining ratio={ratio:.2f} bar=1.0 {'ok' if ratio >= 1 else 'short'}")


if __name__ == "__main__":
    main()
