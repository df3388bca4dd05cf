"""Does it help to know where words stand, and to see the page? Fields of receipts (SROIE), three seeds.

    python benchmarks/documents.py --sroie DIR             words alone, with their places, with the page too
    python benchmarks/documents.py --sroie DIR --quick     one seed, one epoch of each: all of it runs
    python benchmarks/documents.py --sroie DIR --runs DIR  keep the runs; stopped, it goes on

Prints a Markdown table: F1 of fields by whole strings on the test split as the mean over seeds with the
lowest and the highest, the 95 % interval over receipts of the first seed, the F1 of each field, and what the
right tags would give. The ratio is that of the whole to words alone.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from variants import heading, metrics, minutes, options, spread, train

from mmlab.data.shards import ShardSet
from mmlab.metrics.fields import FieldScores, as_text, field_values
from mmlab.metrics.text import Answered
from mmlab.sources.sroie import FIELDS, Sroie

CONFIG = Path(__file__).parents[1] / "experiments" / "extraction" / "sroie.yaml"
WORDS, WHOLE = "words", "words_places_page"
QUICK = ["--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1"]
BLIND: dict[str, Any] = {"image": None, "grid": None}


def without(model: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """An overlay that takes parts of the model and of the data away."""
    adaptation = {"init_args": {"towers": {"*": "full"}}}
    return {"model": {"init_args": {"adaptation": adaptation, "model": {"init_args": model}}}, "data": data}


OVERLAYS: dict[str, dict[str, Any]] = {
    WORDS: without(
        {**BLIND, "text": {"init_args": {"layout": None}}},
        {"image": None, "text": {"init_args": {"boxes": None}}},
    ),
    "words_places": without(BLIND, {"image": None}),
    WHOLE: {},
}


def reachable(folder: Path) -> dict[str, float]:
    """What the right tags of the test split give: some values are not printed as they are released."""
    shards = ShardSet.find("test-*.tar", folder=folder)
    answers = []
    for shard, count in enumerate(shards.counts):
        for number in range(int(count)):
            about = json.loads(shards.read(shard, number).members["json"])
            names = sorted(set(about["tags"]))
            right = torch.tensor([[float(name == tag) for name in names] for tag in about["tags"]])
            told = field_values(about["words"], about["tags"], right, names, glued=about["glued"])
            answers.append(Answered(len(answers), as_text(told), (as_text(about["fields"]),), about["group"]))
    return FieldScores()(answers)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sroie", type=Path, help="its release; default: what was prepared before")
    arguments = options(parser, quick="one seed, one epoch of each")
    seeds = arguments.seeds[:1] if arguments.quick else arguments.seeds
    words = [*(QUICK if arguments.quick else []), *arguments.words]
    best = reachable(Sroie(from_file=arguments.sroie).prepare())
    with tempfile.TemporaryDirectory() as scratch:
        runs = train(CONFIG, OVERLAYS, seeds, words, arguments.runs or Path(scratch))
        found = {name: [metrics(run) for run in directories] for name, directories in runs.items()}
        took = {name: [minutes(run) for run in directories] for name, directories in runs.items()}
    print(heading(seeds, arguments.words))
    print(f"| fields of receipts | F1, % | 95 % | {' | '.join(FIELDS)} | minutes |")
    print("|---" * (4 + len(FIELDS)) + "|")
    means = {}
    for name, results in found.items():
        f1 = [result["test/f1"] or 0.0 for result in results]
        low, high = (100 * (results[0][f"test/f1_{end}"] or 0.0) for end in ("low", "high"))
        each = [spread([result.get(f"test/f1/{field}") or 0.0 for result in results]) for field in FIELDS]
        time = spread(took[name], scale=1)
        title = name.replace("_", ", ")
        print(f"| {title} | {spread(f1)} | {low:.1f} to {high:.1f} | {' | '.join(each)} | {time} |")
        means[name] = sum(f1) / len(f1)
    each = [f"{100 * best[f'f1/{field}']:.1f}" for field in FIELDS]
    print(f"| the right tags | {100 * best['f1']:.1f} | | {' | '.join(each)} | |")
    ratio = means[WHOLE] / max(means[WORDS], 1e-9)
    print(f"documents ratio={ratio:.2f} bar=1.0 {'ok' if ratio >= 1 else 'short'}")


if __name__ == "__main__":
    main()
