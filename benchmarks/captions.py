"""What does a small language model say of pictures it never saw? Captions of the stamps, three seeds.

    python benchmarks/captions.py               experiments/generation/stamps.yaml, and the nearest caption
    python benchmarks/captions.py --quick       one seed, two steps: shows that all of it runs
    python benchmarks/captions.py --runs DIR    keep the runs; stopped, it goes on

The baseline copies the English caption of the training picture that looks most alike: by the cosine of what
the same image encoder makes of both, before any training, as a mean over places. Prints a Markdown table (the
mean over seeds with the lowest and the highest, the 95 % interval over test pictures of the first seed), then
what is said of 12 test pictures, evenly spread and not chosen. The ratio is that of the lowest CIDEr to the
baseline's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from variants import heading, metrics, minutes, options, spread, train

from mmlab.batch import Input
from mmlab.data.image import ImageReader
from mmlab.data.shards import ShardSet
from mmlab.metrics.captions import CaptionScores
from mmlab.metrics.text import Answered
from mmlab.models.encoders.image import ImageEncoder
from mmlab.sources.stamps import Stamps

CONFIG = Path(__file__).parents[1] / "experiments" / "generation" / "stamps.yaml"
SCORES = {"cider": 1.0, "bleu_4": 100.0, "bleu_1": 100.0, "rouge_l": 100.0}
"""What is shown, and times what."""
QUICK = [
    "--trainer.max_epochs", "-1", "--trainer.max_steps", "2", "--trainer.check_val_every_n_epoch", "null",
    "--trainer.val_check_interval", "2",
]  # fmt: skip
EXAMPLES = 12


class Pictures(NamedTuple):
    """A split."""

    keys: list[str]
    captions: list[str]
    groups: list[str]
    """Equal for equal captions, which intervals draw together."""
    vectors: Tensor
    """Of unit length, [pictures, dim]."""


@torch.no_grad()
def look(folder: Path, split: str) -> Pictures:
    """What the untrained encoder makes of the pictures of a split."""
    reader, encoder = ImageReader(192, fit="pad"), ImageEncoder("efficientnet-lite0").eval()
    shards = ShardSet.find(f"{split}-*.tar", folder=folder)
    samples = [
        shards.read(shard, number) for shard, count in enumerate(shards.counts) for number in range(count)
    ]
    pixels = torch.stack([reader.read(sample.members, None)[0] for sample in samples])
    vectors = []
    for rows in pixels.split(64):
        owner = torch.arange(len(rows))
        encoded = encoder(Input(rows, owner, torch.ones(len(rows), dtype=torch.bool)))
        vectors.append(torch.nn.functional.normalize(encoded.tokens.mean(1)))
    about = [json.loads(sample.members["json"]) for sample in samples]
    return Pictures(
        [sample.key for sample in samples],
        [one["captions"]["en"] for one in about],
        [str(one["group"]) for one in about],
        torch.cat(vectors),
    )


def score(said: list[str], pictures: Pictures) -> Mapping[str, float]:
    """By one reference each."""
    pairs = enumerate(zip(said, pictures.captions, pictures.groups, strict=True))
    return CaptionScores()([Answered(n, answer, (caption,), group) for n, (answer, caption, group) in pairs])


def predict(run: Path, words: list[str]) -> dict[str, str]:
    """What the best checkpoint of a run says of the test pictures, by key."""
    (best,) = (path for path in (run / "checkpoints").glob("[!.]*.ckpt") if path.name != "last.ckpt")
    with tempfile.TemporaryDirectory() as scratch:
        command = [
            sys.executable,
            "-m",
            "mmlab",
            "predict",
            "--config",
            str(CONFIG),
            "--ckpt_path",
            str(best),
        ]
        command += [*words, "--runs", scratch, "--name", "said"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (answers,) = Path(scratch).glob("said/*/predictions/answers.jsonl")
        records = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    return {record["key"]: record["answer"] for record in records}


def row(title: str, found: list[Mapping[str, Any]], taken: str) -> str:
    """A line of the table."""
    cells = [
        spread([one[name] or 0.0 for one in found], scale=scale, digits=2 if scale == 1 else 1)
        for name, scale in SCORES.items()
    ]
    interval = f"{found[0]['cider_low'] or 0:.2f} to {found[0]['cider_high'] or 0:.2f}"
    return f"| {title} | {cells[0]} | {interval} | {' | '.join(cells[1:])} | {taken} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments = options(parser, quick="one seed, two steps")
    seeds = arguments.seeds[:1] if arguments.quick else arguments.seeds
    folder = Stamps().prepare()
    known, unseen = look(folder, "train"), look(folder, "test")
    nearest = (unseen.vectors @ known.vectors.T).argmax(1).tolist()
    copied = [known.captions[number] for number in nearest]
    with tempfile.TemporaryDirectory() as scratch:
        words = [*(QUICK if arguments.quick else []), *arguments.words]
        runs = train(CONFIG, {"captions": {}}, seeds, words, arguments.runs or Path(scratch))["captions"]
        found = [{name.removeprefix("test/"): value for name, value in metrics(run).items()} for run in runs]
        taken = spread([minutes(run) for run in runs], scale=1)
        said = predict(runs[0], arguments.words)
    baseline = score(copied, unseen)
    print(f"{len(unseen.keys)} test pictures, {len(known.keys)} to learn from.")
    print(heading(seeds, arguments.words))
    print("| | CIDEr (of 10) | 95 % | BLEU-4, % | BLEU-1, % | ROUGE-L, % | minutes |")
    print("|---|---|---|---|---|---|---|")
    print(row("nearest training caption", [baseline], ""))
    print(row("language model", found, taken))
    print("\n| picture | caption | language model | nearest training caption |\n|---|---|---|---|")
    for number in (place * len(unseen.keys) // EXAMPLES for place in range(EXAMPLES)):
        key = unseen.keys[number]
        print(f"| {key} | {unseen.captions[number]} | {said[key]} | {copied[number]} |")
    ratio = min(one["cider"] or 0.0 for one in found) / baseline["cider"]
    print(f"captions ratio={ratio:.2f} bar=1.0 {'ok' if ratio > 1 else 'short'}")


if __name__ == "__main__":
    main()
