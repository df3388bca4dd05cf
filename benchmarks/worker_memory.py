"""Memory of a loader's worker after one and after ten epochs, for two windows.

What is measured is the worker's own memory (the private pages of /proc/PID/smaps_rollup; Linux only): its
highest value in the second half of the first and of the last epoch, since batches come and go. Photographs
are those of a folder (--data, *.jpg), or drawn.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from mmlab.data.image import ImageReader
from mmlab.data.loader import Loader
from mmlab.data.order import TrainingOrder
from mmlab.data.shards import ShardSet, write_shards
from mmlab.data.stream import Stream

BAR = 1.05
EPOCHS = 10
FULL, QUICK = 2000, 800
SHARD, BATCH = 100, 10
WINDOWS = (64, 8192)


def drawn(count: int) -> list[bytes]:
    """Small pictures of clouds, of many sizes."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        width, height = rng.integers(64, 128, 2)
        clouds = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(clouds).resize((int(width), int(height)), Image.Resampling.BICUBIC).save(file, "JPEG")
        found.append(file.getvalue())
    return found


def samples(pictures: list[bytes], count: int) -> Iterator[dict[str, Any]]:
    for number in range(count):
        yield {"__key__": f"{number:06d}", "jpg": pictures[number % len(pictures)]}


def own_mb() -> float:
    """Private memory of the worker."""
    (worker,) = multiprocessing.active_children()
    lines = Path(f"/proc/{worker.pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 2**10


class Held(NamedTuple):
    """Memory of a worker in MB."""

    first: float
    """After one epoch."""
    last: float


def measure(shards: ShardSet, reader: ImageReader, window: int) -> Held:
    order = TrainingOrder(shards.counts, batch_size=BATCH, seed=0, unit="shard", window=window)
    loader = Loader(Stream(shards, order, [reader], seed=0), steps=order.steps, num_workers=1)
    held = []
    for _ in range(EPOCHS):
        most = 0.0
        for number, _batch in enumerate(loader):
            if number >= order.steps // 2:
                most = max(most, own_mb())
        held.append(most)
    loader.close()
    return Held(held[0], held[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of photographs; default: drawn ones")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} samples instead of {FULL:,}")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    count = QUICK if arguments.quick else FULL
    if arguments.data is None:
        pictures, reader = drawn(100), ImageReader(64)
    else:
        reader = ImageReader()
        pictures = [path.read_bytes() for path in sorted(arguments.data.rglob("*.jpg"))]
        if not pictures:
            parser.error(f"--data {arguments.data}: holds no *.jpg")
    with tempfile.TemporaryDirectory() as folder:
        shards = ShardSet(write_shards(samples(pictures, count), Path(folder), "p", max_samples=SHARD))
        print(f"{count:,} samples; MB of the worker's own")
        print(f"{'window':>8}{'after 1 epoch':>16}{f'after {EPOCHS}':>12}{'ratio':>8}")
        ratios = []
        for window in WINDOWS:
            held = measure(shards, reader, window)
            ratios.append(held.last / held.first)
            print(f"{window:8,}{held.first:16.1f}{held.last:12.1f}{ratios[-1]:8.3f}", flush=True)
    print(f"worker_memory ratio={max(ratios):.3f} bar={BAR} {'ok' if max(ratios) <= BAR else 'short'}")


if __name__ == "__main__":
    main()
