"""Which method of adaptation brings what, at what cost? Retrieval of pictures and captions of the stamps.

    python benchmarks/adaptation.py                every method, three seeds
    python benchmarks/adaptation.py --quick        frozen, lora and full, one seed, one epoch
    python benchmarks/adaptation.py --runs DIR     keep the runs; stopped, it goes on

Runs `mmlab adapt compare` on experiments/retrieval/transfer.yaml and prints its table. The image tower is
convolutional: methods for transformers (prompts, prefix) leave it frozen. The ratio is that of the sizes of
checkpoints, LoRA to full fine-tuning.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import yaml

from mmlab.commands.adapt_compare import METHODS, Plan, compare, find_methods
from mmlab.runs.comparison import checkpoint_ratio, comparison_table

CONFIG = Path(__file__).parents[1] / "experiments" / "retrieval" / "transfer.yaml"
TEXT_ONLY = ("prompts", "prefix")
BAR = 0.05


def text_only(method: str, folder: Path) -> Path:
    """An overlay that adapts the text tower and keeps the image encoder as it is."""
    policy = {
        "class_path": "mmlab.adaptation.policy.Policy",
        "init_args": {"towers": {"image": "frozen", "text": method}},
    }
    path = folder / f"{method}.yaml"
    path.write_text(yaml.safe_dump({"model": {"init_args": {"adaptation": policy}}}), encoding="utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="three methods, one seed, one epoch")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--methods", nargs="+", help="default: all")
    parser.add_argument("--runs", type=Path, help="keep the run directories here")
    arguments = parser.parse_args()
    wanted = arguments.methods or (["full", "frozen", "lora"] if arguments.quick else list(METHODS))
    words = ["--trainer.logger", "false"]
    if arguments.quick:
        words += ["--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1"]
    with tempfile.TemporaryDirectory() as scratch:
        overlays = Path(scratch)
        methods = {
            name: text_only(name, overlays) if name in TEXT_ONLY else find_methods(CONFIG, [name])[name]
            for name in wanted
        }
        plan = Plan(
            [str(CONFIG)],
            methods,
            arguments.seeds[:1] if arguments.quick else arguments.seeds,
            words,
            (arguments.runs or overlays / "runs").absolute(),
        )
        compared, goal = compare(plan)
    if goal is None:
        sys.exit("every run failed")
    print(comparison_table(compared, goal))
    ratio = checkpoint_ratio(compared, "lora", "full")
    trained = all(one.runs and not one.failed for one in compared)
    fine = ratio is not None and ratio < BAR and trained
    print(f"adaptation ratio={ratio or float('nan'):.3f} bar={BAR} {'ok' if fine else 'short'}")


if __name__ == "__main__":
    main()
