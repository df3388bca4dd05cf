"""Which emotion does a voice carry? EmoDB, leave one speaker out, frozen and fine-tuned, three seeds.

    python benchmarks/emotion.py --emodb DIR              every speaker of the release is the test once
    python benchmarks/emotion.py --emodb DIR --quick      one seed, one speaker, one epoch: all of it runs
    python benchmarks/emotion.py --emodb DIR --runs DIR   keep the runs; stopped, it goes on

Prints a Markdown table: unweighted average recall of each speaker's utterances, and its mean over speakers,
as the mean over seeds with the lowest and the highest. The ratio is that of the better one to 75 %.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from variants import heading, metrics, options, spread, train

from mmlab.sources.files import open_release

CONFIG = Path(__file__).parents[1] / "experiments" / "sentiment" / "emodb.yaml"
QUICK = ["--trainer.max_epochs", "1"]
BAR = 0.75
TUNED: dict[str, Any] = {
    "model": {"init_args": {"adaptation": {"init_args": {"towers": {"text": "frozen", "audio": "full"}}}}},
    "trainer": {"max_epochs": 20},
}
METHODS: dict[str, dict[str, Any]] = {"frozen": {}, "fine_tuned": TUNED}


def speakers(release: Path) -> list[str]:
    """Those who speak in the release: the first two digits of a recording's name."""
    with open_release(release) as files:
        recordings = [name.rpartition("/")[2] for name in files.names if name.endswith(".wav")]
    return sorted({name[:2] for name in recordings})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--emodb", type=Path, required=True, help="its release")
    arguments = options(parser, quick="one seed, one speaker, one epoch")
    seeds = arguments.seeds[:1] if arguments.quick else arguments.seeds
    words = [*(QUICK if arguments.quick else []), *arguments.words]
    tested = speakers(arguments.emodb)[: 1 if arguments.quick else None]
    overlays = {
        f"{method}_{speaker}": {
            **overlay,
            "data": {
                "source": {
                    "init_args": {"from_file": str(arguments.emodb.absolute()), "test_speaker": speaker}
                }
            },
        }
        for method, overlay in METHODS.items()
        for speaker in tested
    }
    with tempfile.TemporaryDirectory() as scratch:
        runs = train(CONFIG, overlays, seeds, words, arguments.runs or Path(scratch))
        found = {
            name: [metrics(run)["test/uar"] or 0.0 for run in directories]
            for name, directories in runs.items()
        }
    print(heading(seeds, arguments.words))
    print(f"| UAR, % | {' | '.join(tested)} | mean |")
    print("|---" * (2 + len(tested)) + "|")
    means = {}
    for method in METHODS:
        each = [found[f"{method}_{speaker}"] for speaker in tested]
        mean = [sum(scores) / len(scores) for scores in zip(*each, strict=True)]
        print(f"| {method.replace('_', '-')} | {' | '.join(map(spread, each))} | {spread(mean)} |")
        means[method] = sum(mean) / len(mean)
    ratio = max(means.values()) / BAR
    print(f"emotion ratio={ratio:.2f} bar=1.0 {'ok' if ratio >= 1 else 'short'}")


if __name__ == "__main__":
    main()
