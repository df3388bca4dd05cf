"""Is the statement true of the drawing? NLVR: train on its public test split, judge dev, three seeds.

    python benchmarks/nlvr.py --nlvr DIR             from pictures, statements alone, scenes in words
    python benchmarks/nlvr.py --nlvr DIR --quick     one seed, two steps of each: shows that all of it runs
    python benchmarks/nlvr.py --nlvr DIR --runs DIR  keep the runs; stopped, it goes on

Only these two splits are in common circulation: 1,790 drawings to learn from. Consistency counts the scenes
that are judged rightly in both of their drawings. Statements alone tell what the words give away; the scene
in words (what lies in each box, from the released structure) tells what the language model makes of a scene
that it need not see. Beside them stands the commoner answer. Prints a Markdown table: the mean over seeds
with the lowest and the highest, and the 95 % interval over scenes of the first seed. There is no bar: the
ratio is that of the lower end of the pictures' interval to the commoner answer.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from variants import Metrics, heading, metrics, minutes, options, spread, train

from mmlab.data.shards import ShardSet
from mmlab.sources.nlvr import Nlvr

CONFIG = Path(__file__).parents[1] / "experiments" / "reasoning" / "nlvr.yaml"
SCORES = ("accuracy", "consistency")
SEEN = "picture"
QUICK = ["--trainer.max_epochs", "-1", "--trainer.max_steps", "2", "--trainer.limit_test_batches", "0.1"]


SOURCE: dict[str, Any] = {"data": {"source": {"init_args": {"train": "test"}}}}


def read(user: str) -> dict[str, Any]:
    """An overlay with which the model reads and sees nothing."""
    return {
        "data": SOURCE["data"]
        | {
            "image": None,
            "text": {"init_args": {"prompts": [{"user": user, "assistant": "{json.answer}"}]}},
        },
        "model": {
            "init_args": {
                "model": {"init_args": {"image": None}},
                "adaptation": {"init_args": {"towers": {"language": "lora"}}},
                "optimization": {"rates": {}},
            }
        },
    }


OVERLAYS: dict[str, dict[str, Any]] = {
    SEEN: SOURCE,
    "statement_alone": read("{json.statement}"),
    "scene_in_words": read("{json.scene}\n{json.statement}"),
}


def labels(folder: Path, split: str) -> Iterator[tuple[str, str]]:
    """Group and answer of each drawing of a split."""
    shards = ShardSet.find(f"{split}-*.tar", folder=folder)
    for shard, count in enumerate(shards.counts):
        for number in range(count):
            sample = json.loads(shards.read(shard, number).members["json"])
            yield sample["group"], sample["answer"]


def commoner(folder: Path) -> Mapping[str, float]:
    """What the commoner training answer reaches."""
    usual = Counter(answer for _, answer in labels(folder, "train")).most_common(1)[0][0]
    of_group: dict[str, list[bool]] = defaultdict(list)
    for group, answer in labels(folder, "test"):
        of_group[group].append(answer == usual)
    right = [one for group in of_group.values() for one in group]
    whole = [all(group) for group in of_group.values()]
    return {"accuracy": sum(right) / len(right), "consistency": sum(whole) / len(whole)}


def cells(found: list[Metrics]) -> list[str]:
    """Each score with its spread, and its interval."""
    filled = []
    for score in SCORES:
        low, high = (found[0][f"test/{score}_{end}"] or 0.0 for end in ("low", "high"))
        filled += [spread([one[f"test/{score}"] or 0.0 for one in found])]
        filled += [f"{100 * low:.1f} to {100 * high:.1f}"]
    return filled


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nlvr", type=Path, help="its release; default: what was prepared before")
    arguments = options(parser, quick="one seed, two steps of each")
    seeds = arguments.seeds[:1] if arguments.quick else arguments.seeds
    words = [*(QUICK if arguments.quick else []), *arguments.words]
    prepared = Nlvr(train="test", from_file=arguments.nlvr).prepare()
    with tempfile.TemporaryDirectory() as scratch:
        runs = train(CONFIG, OVERLAYS, seeds, words, arguments.runs or Path(scratch))
        found = {name: [metrics(run) for run in directories] for name, directories in runs.items()}
        taken = {name: [minutes(run) for run in directories] for name, directories in runs.items()}
    usual = commoner(prepared)
    print(heading(seeds, arguments.words))
    print(
        "| what is read | accuracy, % | 95 % | consistency, % | 95 % | minutes |\n|---|---|---|---|---|---|"
    )
    print(f"| commoner answer | {100 * usual['accuracy']:.1f} | | {100 * usual['consistency']:.1f} | | |")
    for name, results in found.items():
        print(f"| {name.replace('_', ' ')} | {' | '.join(cells(results))} | {spread(taken[name], scale=1)} |")
    ratio = (found[SEEN][0]["test/accuracy_low"] or 0.0) / usual["accuracy"]
    print(f"nlvr ratio={ratio:.2f} bar=none (lower end of the interval to the commoner answer)")


if __name__ == "__main__":
    main()
