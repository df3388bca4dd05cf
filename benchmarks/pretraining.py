"""Is pretraining worth it where pairs are few? Stamps, all training pairs, then a tenth of them; three seeds.

    python benchmarks/pretraining.py             pretraining, then retrieval with and without it
    python benchmarks/pretraining.py --quick     one seed, one epoch of each: all of it runs
    python benchmarks/pretraining.py --runs DIR  keep the runs; stopped, it goes on

Pretraining is experiments/pretraining/stamps.yaml. Then experiments/retrieval/transfer.yaml is trained on a
tenth of the training pairs (`data.splits.train_share`, another tenth for each seed), from what came out
(`init_from`) and from the assets, which know ImageNet and sentences. Encoders are frozen in it: what differs
is what they know. Pretraining has seen all pairs, so the gain is that of pairs and of its objectives.

Prints a Markdown table: the mean over seeds with the lowest and the highest, and the 95 % interval over test
captions of the first seed; then the gain in mean recall, of each seed with the same tenth, and its 95 %
interval over seeds (Student's t).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import scipy.stats
from variants import Metrics, heading, metrics, options, spread, train

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
PRETRAINING = EXPERIMENTS / "pretraining" / "stamps.yaml"
RETRIEVAL = EXPERIMENTS / "retrieval" / "transfer.yaml"
SCORES = ("test/mean_recall", "test/text_to_image/r1", "test/text_to_image/r10")
WITHOUT, WITH, ALONE = "a tenth", "pretraining, then a tenth", "pretraining alone"
EPOCHS = {PRETRAINING: 6, RETRIEVAL: 8}
SHARE = 0.1


def results(seed: int, out: Path, arguments: argparse.Namespace) -> dict[str, Metrics]:
    """What each way reaches on the test split under one seed."""

    def trainer(config: Path) -> dict[str, int]:
        epochs = 1 if arguments.quick else EPOCHS[config]
        # Only the last weights are validated, and so tested: the choice among few would be noise.
        return {"max_epochs": epochs, "check_val_every_n_epoch": epochs}

    pretraining = {"trainer": trainer(PRETRAINING)}
    (run,) = train(PRETRAINING, {"pretraining": pretraining}, [seed], arguments.words, out)["pretraining"]
    tenth = {
        "data": {"batch_size": 12, "splits": {"train_share": SHARE, "share_seed": seed}},
        "trainer": trainer(RETRIEVAL),
    }
    ways = {"without": tenth, "with": tenth | {"init_from": str(run)}}
    tuned = train(RETRIEVAL, ways, [seed], arguments.words, out / f"tenth-{seed}")
    found = {WITHOUT: tuned["without"][0], WITH: tuned["with"][0], ALONE: run}
    return {way: metrics(directory) for way, directory in found.items()}


def _interval(gains: Sequence[float]) -> str:
    """Where the mean over all seeds lies with 95 % probability, if gains are normal."""
    if len(gains) < 2:
        return ""
    half = float(scipy.stats.t.ppf(0.975, len(gains) - 1) * scipy.stats.sem(gains))
    mean = sum(gains) / len(gains)
    return f", 95 % interval over seeds {mean - half:.1f} to {mean + half:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments = options(parser, quick="one seed, one epoch of each")
    seeds = arguments.seeds[:1] if arguments.quick else arguments.seeds
    with tempfile.TemporaryDirectory() as scratch:
        out = (arguments.runs or Path(scratch)).absolute()
        found = [results(seed, out, arguments) for seed in seeds]
    print(heading(seeds, arguments.words))
    print("| stamps | mean recall, % | 95 % | text to image R@1 | R@10 |\n|---|---|---|---|---|")
    means = {}
    for way in (WITHOUT, WITH, ALONE):
        scores = {name: [one[way][name] or 0.0 for one in found] for name in SCORES}
        low, high = (100 * (found[0][way][f"{SCORES[0]}_{end}"] or 0.0) for end in ("low", "high"))
        first, *rest = (spread(values) for values in scores.values())
        print(f"| {way} | {first} | {low:.1f} to {high:.1f} | {' | '.join(rest)} |")
        means[way] = sum(scores[SCORES[0]]) / len(seeds)
    gains = [100 * ((one[WITH][SCORES[0]] or 0.0) - (one[WITHOUT][SCORES[0]] or 0.0)) for one in found]
    print(f"gain in mean recall: {spread(gains, scale=1.0)} points{_interval(gains)}")
    ratio = means[WITH] / means[WITHOUT]
    print(f"pretraining ratio={ratio:.2f} bar=1.0 {'ok' if ratio >= 1 else 'short'}")


if __name__ == "__main__":
    main()
