"""How long training stands still for a checkpoint, and what its digest costs.

A checkpoint of weights and the two moments of AdamW is saved again and again under one name: by mmlab
behind training, by mmlab in the foreground, by Lightning's own writer and by plain `torch.save`. They take
turns, each begins when nothing is being written any more, and the first round is left out. Times are medians
over the rounds. Only mmlab's lines mean that all is on the disk (fsync); Lightning's writer makes the file in
memory first, and neither it nor `torch.save` waits for the disk. `digest` is mmlab's foreground save without
the SHA-256. The ratio is the time that training stands still behind mmlab's save by that for Lightning's.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from mmlab.parallel import digests
from mmlab.parallel.checkpoint_files import CheckpointFiles

BAR = 0.5
FULL, QUICK = 500, 100
"""MB of a checkpoint."""
TENSORS = 48


class Nothing:
    """Stands for SHA-256 where its cost is measured."""

    def update(self, data: Any) -> None:
        """Do nothing."""

    def hexdigest(self) -> str:
        """No digest at all."""
        return 64 * "0"


def checkpoint(megabytes: int) -> dict[str, Any]:
    """Weights and twice as much of optimizer state."""
    count = megabytes * 1_000_000 // (4 * 3 * TENSORS)
    weights = {f"layer{number}.weight": torch.randn(count) for number in range(TENSORS)}
    state = {
        number: {"step": torch.tensor(1.0), "exp_avg": torch.randn(count), "exp_avg_sq": torch.rand(count)}
        for number in range(TENSORS)
    }
    settings = [{"lr": 1e-3, "params": list(range(TENSORS))}]
    return {
        "state_dict": weights, "global_step": 1,
        "optimizer_states": [{"state": state, "param_groups": settings}],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} MB instead of {FULL} MB")
    parser.add_argument("--folder", type=Path, help="Where to write; else among temporary files.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    megabytes, rounds = (QUICK, 3) if arguments.quick else (FULL, 5)
    data = checkpoint(megabytes)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        path = Path(name) / "last.ckpt"
        files = CheckpointFiles()

        def behind() -> None:
            with files.behind():
                files.save_checkpoint(data, path)

        def without_digest() -> None:
            true = digests.hashlib.sha256
            digests.hashlib.sha256 = Nothing  # type: ignore[assignment, misc]
            try:
                files.save_checkpoint(data, path)
            finally:
                digests.hashlib.sha256 = true  # type: ignore[misc]

        ways: dict[str, Callable[[], None]] = {
            "mmlab, behind training": behind,
            "mmlab, foreground": lambda: files.save_checkpoint(data, path),
            "mmlab, foreground, no digest": without_digest,
            "Lightning 2.6": lambda: TorchCheckpointIO().save_checkpoint(data, path),
            "torch.save": lambda: torch.save(data, path),
        }
        held: dict[str, list[float]] = {way: [] for way in ways}
        complete: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(rounds + 1):
            for way, save in ways.items():
                start = time.perf_counter()
                save()
                stood = time.perf_counter() - start
                files.wait()
                if number > 0:
                    held[way].append(stood)
                    complete[way].append(time.perf_counter() - start)
        files.teardown()
    print(f"A checkpoint of {megabytes} MB, medians of {rounds} rounds\n")
    print("| way | training stands still (s) | complete after (s) |\n|---|---:|---:|")
    for way in ways:
        print(f"| {way} | {median(held[way]):.2f} | {median(complete[way]):.2f} |")
    cost = median(held["mmlab, foreground"]) - median(held["mmlab, foreground, no digest"])
    print(f"\nthe digest takes {cost:.2f} s of a save in the foreground")
    ratio = median(held["mmlab, behind training"]) / median(held["Lightning 2.6"])
    print(f"saving ratio={ratio:.2f} bar={BAR} {'ok' if ratio <= BAR else 'short'}")


if __name__ == "__main__":
    main()
