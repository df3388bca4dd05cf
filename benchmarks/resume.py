"""From building the loader to the first batch: at 90 % of an epoch beside the beginning.

Thousands of tiny tars are written to a temporary folder. Each measurement builds order, stream and loader
anew over the opened shards, in this process, and takes the first batch; 0 % and 90 % take turns. With
workers their start is part of it. The first round is left out: it starts the server that workers are forked
from.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from mmlab.data.lanes import Unit
from mmlab.data.loader import Loader
from mmlab.data.order import TrainingOrder
from mmlab.data.shards import ShardSet, write_shards
from mmlab.data.signal import SignalReader
from mmlab.data.stream import Stream

BAR = 1.2
FULL, QUICK = 4000, 500
SHARD, BATCH = 20, 64
AT = (0.0, 0.9)


def samples(count: int) -> Iterator[dict[str, Any]]:
    for number in range(count):
        signal = np.full((4, 2), number, dtype=np.float32)
        yield {"__key__": f"{number:08d}", "npy": signal, "json": {"group": number}}


def first_batch(shards: ShardSet, share: float, *, unit: Unit, workers: int) -> float:
    """Seconds to the first batch at a share of the epoch."""
    start = time.perf_counter()
    order = TrainingOrder(shards.counts, batch_size=BATCH, seed=0, unit=unit)
    step = int(share * order.steps)
    stream = Stream(shards, order, [SignalReader(channels=2)], seed=0, group_by="key")
    loader = Loader(stream, steps=order.steps, num_workers=workers, position=lambda: step)
    batch = next(iter(loader))
    seconds = time.perf_counter() - start
    assert int(batch.place[0]) == step * BATCH
    loader.close()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK:,} tars instead of {FULL:,}")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    count, repetitions = (QUICK, 3) if arguments.quick else (FULL, 11)
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        paths = write_shards(samples(count * SHARD), Path(folder), "tiny", max_samples=SHARD)
        shards = ShardSet(paths)
        print(f"{count:,} tars, {count * SHARD:,} samples, milliseconds to the first batch (lowest, highest)")
        print(f"{'unit':8}{'workers':>8}" + "".join(f"{share:>24.0%}" for share in AT) + f"{'ratio':>8}")
        units: tuple[Unit, ...] = ("sample", "shard")
        for unit in units:
            for workers in (0, 2):
                found: dict[float, list[float]] = {share: [] for share in AT}
                for repetition in range(repetitions + 1):
                    # Which goes first changes, so that neither always finds what the other left in caches.
                    for share in AT if repetition % 2 == 0 else reversed(AT):
                        seconds = first_batch(shards, share, unit=unit, workers=workers)
                        if repetition > 0:
                            found[share].append(1000 * seconds)
                ratios.append(median(found[AT[1]]) / median(found[AT[0]]))
                cells = [f"{median(m):.1f} ({min(m):.1f}, {max(m):.1f})" for m in found.values()]
                print(f"{unit:8}{workers:8}" + "".join(f"{c:>24}" for c in cells) + f"{ratios[-1]:8.2f}")
    print(f"resume ratio={max(ratios):.2f} bar={BAR} {'ok' if max(ratios) <= BAR else 'short'}")


if __name__ == "__main__":
    main()
