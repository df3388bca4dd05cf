"""How well shards sorted by class are shuffled: distinct classes in a batch, beside a perfect shuffle.

Every shard holds one class. mmlab permutes whole shards and, in each of its lanes, windows of samples; a
batch takes a few samples from every lane. webdataset shuffles the shards and passes the samples through its
shuffle buffer, of as many samples as mmlab's window, in one process that reads all shards. Nothing is read:
both are asked for the class of each sample. webdataset would hold the buffer's samples, mmlab holds numbers.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from itertools import islice

import numpy as np
from webdataset.filters import _shuffle

from mmlab.data.lanes import WINDOW, Unit
from mmlab.data.order import TrainingOrder

BAR = 0.8
CLASSES, SHARDS, SAMPLES, BATCH = 1000, 10_000, 1000, 256
WINDOWS = (64, 512, 2048, WINDOW)


def with_mmlab(unit: Unit, window: int, batches: int) -> float:
    """Mean number of classes in batches spread over the first two epochs."""
    order = TrainingOrder([SAMPLES] * SHARDS, batch_size=BATCH, seed=0, unit=unit, window=window)
    steps = np.linspace(0, 2 * order.steps, batches, endpoint=False).astype(int)
    return float(np.mean([len(np.unique(order.places(int(step)).shard % CLASSES)) for step in steps]))


def with_webdataset(buffer: int, batches: int) -> float:
    """Mean number of classes in batches from the middle of an epoch."""
    rng = random.Random(0)
    shards = list(range(SHARDS))
    rng.shuffle(shards)
    classes: Iterator[int] = (shard % CLASSES for shard in shards for _ in range(SAMPLES))
    shuffled = _shuffle(classes, buffer, buffer, rng)
    settled = islice(shuffled, 10 * buffer, None)
    found = [len(set(islice(settled, BATCH))) for _ in range(batches)]
    return float(np.mean(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer batches")
    batches = 100 if parser.parse_args().quick else 1000
    perfect = CLASSES * (1 - (1 - 1 / CLASSES) ** BATCH)
    print(f"{SHARDS:,} shards of {SAMPLES:,} samples, each of one of {CLASSES:,} classes; batches of {BATCH}")
    print(f"{'distinct classes':28}{'mean':>8}{'of perfect':>12}")

    def show(name: str, value: float) -> None:
        print(f"{name:28}{value:8.1f}{value / perfect:12.2f}", flush=True)

    show("perfect shuffle", perfect)
    show("mmlab, unit sample", with_mmlab("sample", WINDOW, batches))
    ours = {window: with_mmlab("shard", window, batches) for window in WINDOWS}
    for window, value in ours.items():
        show(f"mmlab, window {window:,}", value)
        show(f"webdataset, buffer {window:,}", with_webdataset(window, batches))
    ratio = ours[WINDOW] / perfect
    print(f"shuffling ratio={ratio:.2f} bar={BAR} {'ok' if ratio >= BAR else 'short'}")


if __name__ == "__main__":
    main()
