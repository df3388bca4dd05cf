"""Which method of adaptation? All of them on pictures and captions of the stamps, three seeds each.

    python benchmarks/adaptation.py --out DIR      an hour on two cores; may be started again
    python benchmarks/adaptation.py --quick        three methods, one seed, one epoch

Runs `mmlab adapt compare` on experiments/retrieval/transfer.yaml and prints its table. What cannot be used on
the convolutional picture tower (prompts, prefixes) is used on the text tower, with the other one frozen. The
bar is on the size of LoRA's checkpoint beside that of full fine-tuning.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "experiments" / "retrieval" / "transfer.yaml"
METHODS = ("full", "frozen", "probe", "lora", "adapters", "ia3", "bitfit", "layernorm", "staged")
TEXT_ONLY = ("prompts", "prefix")
BAR = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="three methods, one seed, one epoch")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--out", type=Path, help="keep runs here, and do not repeat those that are there")
    arguments = parser.parse_args()
    methods = ["full", "frozen", "lora"] if arguments.quick else [*METHODS, *TEXT_ONLY]
    command = [sys.executable, "-m", "mmlab", "adapt", "compare", "--config", str(CONFIG)]
    command += ["--methods", ",".join(methods), "--seeds", "1" if arguments.quick else arguments.seeds]
    if arguments.quick:
        command += ["--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1"]
    with tempfile.TemporaryDirectory() as scratch:
        out = (arguments.out or Path(scratch)).absolute()
        printed = subprocess.run(
            [*command, "--out", str(out)], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
        ).stdout
    print(printed)
    sizes = {
        name: float(re.search(rf"^\| {name} \|(?:[^|]*\|){{3}} ([\d.]+) \|", printed, re.M)[1])  # type: ignore[index]
        for name in ("lora", "full")
    }
    ratio = sizes["lora"] / sizes["full"]
    print(f"adaptation ratio={ratio:.3f} bar={BAR} {'ok' if ratio <= BAR else 'short'}")


if __name__ == "__main__":
    main()
