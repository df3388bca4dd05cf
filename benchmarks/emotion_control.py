"""Do replies carry the emotion that was asked for? A classifier judges them, and first real utterances.

    python benchmarks/emotion_control.py --meld FOLDER --ckpt_path FILE     a run of generation/dialogue.yaml
    python benchmarks/emotion_control.py --meld FOLDER                      the model before training
    python benchmarks/emotion_control.py --meld FOLDER --samples 60         quick

A logistic regression on MiniLM's embeddings learns the emotions of MELD's training utterances; classes weigh
the same. How well it knows those of real test utterances bounds what it can find in replies. Replies are
generated twice to the same test dialogues: asked for the emotion of the real utterance, and for one of the
seven drawn at random. What was said before hints at the first but not at the second: replies that ignore what
is asked are recognised as the drawn emotion in 1 of 7, whatever the classifier. (Real utterances are mostly
neutral, so by their emotions only the macro recall tells anything.) The last line holds the lower end of the
95 % interval (over dialogues) of that share against this chance.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from mmlab.data.shards import ShardSet, write_shards
from mmlab.data.text import load_tokenizer
from mmlab.metrics.ranking import Scores, bootstrap_interval
from mmlab.models.pretrained import load_text
from mmlab.sources.meld import Meld

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "experiments" / "generation" / "dialogue.yaml"
EMOTIONS = ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")
Sample = dict[str, Any]


def read(folder: Path, split: str) -> dict[str, Sample]:
    """The utterances of a split by key."""
    shards = ShardSet.find(f"{split}-*.tar", folder=folder)
    samples = (shards.read(shard, i) for shard, count in enumerate(shards.counts) for i in range(count))
    return {sample.key: json.loads(sample.members["json"]) for sample in samples}


@torch.no_grad()
def embed(texts: Sequence[str], batch: int = 64) -> torch.Tensor:
    """MiniLM's sentence embeddings: the mean over tokens, of unit length."""
    tokenizer, network = load_tokenizer("minilm-l6"), load_text("minilm-l6", pretrained=True).eval()
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    vectors = torch.empty(len(texts), network.config.hidden_size)
    for start in range(0, len(order), batch):
        places = order[start : start + batch]
        rows = tokenizer(
            [texts[p] for p in places], padding=True, truncation=True, max_length=128, return_tensors="pt"
        )
        mask = rows["attention_mask"][:, :, None]
        hidden = network(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).last_hidden_state
        vectors[places] = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1))
    return vectors


def replies(
    samples: dict[str, Sample], name: str, arguments: argparse.Namespace, folder: Path
) -> dict[str, str]:
    """What the model says when it is asked for the emotions of the samples."""
    members = ({"__key__": key, "json": json.dumps(sample).encode()} for key, sample in samples.items())
    tars = write_shards(members, folder, name)
    command = [sys.executable, "-m", "mmlab", "predict", "--config", str(arguments.config), "--name", name]
    command += ["--runs", str(folder / "runs"), "--data.source", "null", "--trainer.logger", "false"]
    command += ["--data.splits.predict", str(tars[0]), *arguments.more]
    if arguments.ckpt_path is not None:
        command += ["--ckpt_path", str(arguments.ckpt_path)]
    subprocess.run(command, check=True, stdout=sys.stderr)
    (written,) = folder.glob(f"runs/{name}/*/predictions/answers.jsonl")
    records = map(json.loads, written.read_text(encoding="utf-8").splitlines())
    return {record["key"]: record["answer"] for record in records}


def measure(found: Sequence[str], wanted: Sequence[str], keys: Sequence[str]) -> tuple[float, float, float]:
    """Share recognised as wanted, with its 95 % interval over dialogues."""
    hits = torch.tensor([one == other for one, other in zip(found, wanted, strict=True)], dtype=torch.float64)
    dialogues = torch.tensor([int(key.partition("_")[0].removeprefix("dia")) for key in keys])
    interval = bootstrap_interval([Scores(hits, dialogues)], seed=0)
    return float(hits.mean()), interval.low, interval.high


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--meld", type=Path, help="its release; default: what was prepared before")
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--ckpt_path", type=Path, help="default: the model as the config builds it")
    parser.add_argument("--samples", type=int, default=500, help="replies of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of the test utterances and emotions drawn")
    arguments, arguments.more = parser.parse_known_args()  # other words go to `mmlab predict`
    folder = Meld(from_file=arguments.meld).prepare()
    train, test = read(folder, "train"), read(folder, "test")
    judge = LogisticRegression(max_iter=2000, class_weight="balanced")
    known = embed([sample["utterance"] for sample in train.values()])
    judge.fit(known, [sample["emotion"] for sample in train.values()])

    rng = Random(arguments.seed)
    keys = sorted(rng.sample(sorted(test), min(arguments.samples, len(test))))
    own = {key: test[key] for key in keys}
    drawn = {key: {**sample, "emotion": rng.choice(EMOTIONS)} for key, sample in own.items()}
    with tempfile.TemporaryDirectory() as scratch:
        said = {
            name: replies(samples, name, arguments, Path(scratch))
            for name, samples in (("own", own), ("drawn", drawn))
        }
    everything = [sample["utterance"] for sample in test.values()]
    rows = [("real utterances", "their own", list(test), everything, test)]
    for name, wanted, asked in (("own", "of the real one", own), ("drawn", "drawn", drawn)):
        rows.append(("replies", wanted, list(said[name]), list(said[name].values()), asked))
    rows.append(("the same replies", "of the real one, not asked", *rows[-1][2:4], own))
    print("| judged | emotion | texts | recognised % | 95 % | macro recall % |\n|---|---|---|---|---|---|")
    for title, wanted, names, texts, labels in rows:
        right = [labels[key]["emotion"] for key in names]
        found = judge.predict(embed(texts)).tolist()
        share, low, high = measure(found, right, names)
        recall = balanced_accuracy_score(right, found)
        print(f"| {title} | {wanted} | {len(texts)} | {share:.1%} | {low:.0%}-{high:.0%} | {recall:.1%} |")
        if wanted == "drawn":
            ratio = low * len(EMOTIONS)
    print(f"emotion_control ratio={ratio:.2f} bar=1.0 {'ok' if ratio > 1 else 'short'}")


if __name__ == "__main__":
    main()
