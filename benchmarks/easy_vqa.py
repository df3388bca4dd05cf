"""What do questions about pictures get answered? easy-VQA's official test split, three seeds.

    python benchmarks/easy_vqa.py               a language model, a list of answers, both without pictures too
    python benchmarks/easy_vqa.py --quick       one seed, two steps of each: shows that all of it runs
    python benchmarks/easy_vqa.py --runs DIR    keep the runs; stopped, it goes on

Beside them stands what needs no model: the commonest training answer, to anything and to each question.
Prints a Markdown table: the mean over seeds with the lowest and the highest, and the 95 % interval over test
pictures of the first seed. Bars: 90 % for the language model in 60 minutes on two cores, 97 % for the list.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from variants import heading, metrics, minutes, options, spread, train

from mmlab.data.shards import ShardSet
from mmlab.sources.easy_vqa import EasyVqa

EXPERIMENTS = Path(__file__).parents[1] / "experiments" / "question_answering"
SCORE = "test/exact_match"
SPOKEN, LISTED = "language_model", "answer_list"
BARS = {SPOKEN: 0.90, LISTED: 0.97}
MINUTES = 60
BLIND = "_blind"
"""In the name of what sees no picture."""
OVERLAYS: dict[str, dict[str, Any]] = {
    SPOKEN: {},
    SPOKEN + BLIND: {
        "data": {
            "image": None,
            "text": {"init_args": {"prompts": [{"user": "{json.question}", "assistant": "{json.answer}"}]}},
        },
        "model": {
            "init_args": {
                "model": {"init_args": {"image": None}},
                "adaptation": {"init_args": {"towers": {"language": "lora"}}},
                "optimization": {"rates": {}},
            }
        },
    },
    LISTED: {},
    LISTED + BLIND: {
        "data": {"image": None},
        "model": {
            "init_args": {
                "model": {"init_args": {"image": None, "fusion": {"init_args": {"dims": {"text": 384}}}}},
                "adaptation": {"init_args": {"towers": {"text": "frozen", "*": "full"}}},
            }
        },
    },
}
QUICK = [
    "--trainer.max_steps", "2", "--trainer.val_check_interval", "2", "--trainer.limit_val_batches", "0.06",
    "--trainer.limit_test_batches", "0.06",
]  # fmt: skip


def answers(split: str) -> Iterator[tuple[str, str]]:
    """Questions and right answers of a split, one for each."""
    shards = ShardSet.find(f"{split}-*.tar", folder=EasyVqa(per_picture=False).prepare())
    for shard, count in enumerate(shards.counts):
        for number in range(count):
            sample = json.loads(shards.read(shard, number).members["json"])
            yield sample["question"], sample["answers"][0]


def commonest() -> Mapping[str, float]:
    """Share of the test answers that the commonest training answer is."""
    anything: Counter[str] = Counter()
    of_question: dict[str, Counter[str]] = defaultdict(Counter)
    for question, answer in answers("train"):
        anything[answer] += 1
        of_question[question][answer] += 1
    usual = anything.most_common(1)[0][0]
    right = [
        (answer == usual, answer == (of_question[question].most_common(1) or [(usual, 0)])[0][0])
        for question, answer in answers("test")
    ]
    return {
        "commonest answer": sum(one for one, _ in right) / len(right),
        "commonest answer to the question": sum(other for _, other in right) / len(right),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments = options(parser, quick="one seed, two steps of each")
    seeds = arguments.seeds[:1] if arguments.quick else arguments.seeds
    words = [*(QUICK if arguments.quick else []), *arguments.words]
    with tempfile.TemporaryDirectory() as scratch:
        out = arguments.runs or Path(scratch)
        runs: dict[str, list[Path]] = {}
        for config, title in (("easy_vqa_classifier", LISTED), ("easy_vqa", SPOKEN)):
            chosen = {name: overlay for name, overlay in OVERLAYS.items() if name.startswith(title)}
            runs |= train(EXPERIMENTS / f"{config}.yaml", chosen, seeds, words, out)
        found = {name: [metrics(run) for run in directories] for name, directories in runs.items()}
        taken = {name: [minutes(run) for run in directories] for name, directories in runs.items()}
    print(heading(seeds, arguments.words))
    print("| easy-VQA, official test split | exact match, % | 95 % | minutes |\n|---|---|---|---|")
    for name, share in commonest().items():
        print(f"| {name} | {100 * share:.1f} | | |")
    lowest = {}
    for name, results in found.items():
        scores = [result[SCORE] or 0.0 for result in results]
        low, high = (100 * (results[0][f"{SCORE}_{end}"] or 0.0) for end in ("low", "high"))
        title = name.replace("_", " ").replace(" blind", " without the picture")
        print(f"| {title} | {spread(scores)} | {low:.1f} to {high:.1f} | {spread(taken[name], scale=1)} |")
        lowest[name] = min(scores)
    for name, bar in BARS.items():
        ratio = lowest[name] / bar
        print(f"easy_vqa_{name} ratio={ratio:.2f} bar=1.0 {'ok' if ratio >= 1 else 'short'}")
    ratio = MINUTES / max(taken[SPOKEN])
    print(f"easy_vqa_minutes ratio={ratio:.2f} bar=1.0 {'ok' if ratio >= 1 else 'short'}")


if __name__ == "__main__":
    main()
