"""Planning an epoch of a million shards: seconds and memory before the first batch of one of 1,024 ranks.

Counts are simulated: nothing is read. The plan is made in a process of its own, from the counts in memory to
the places of the first batch; memory is its peak above what it held with the counts made (Linux only). Then
come the next batches, in processor time. Medians of several processes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np

from mmlab.data.order import TrainingOrder

SECONDS, MEGABYTES, GROWTH = 2.0, 300.0, 2.0
SHARDS = (1_000, 10_000, 100_000, 1_000_000)
SAMPLES = 10_000
"""Mean of a shard."""
RANKS, RANK = 1024, 700
BATCH = 32 * RANKS
LATER = 250
"""Batches: less than the epoch of the fewest shards has."""


def memory_mb(field: str) -> float:
    """Memory of this process: VmRSS is what it holds, VmHWM the most it held since the last reset."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 2**10


class Measured(NamedTuple):
    """What planning took."""

    seconds: float
    """To the first batch."""
    memory: float
    """In MB."""
    later: float
    """Milliseconds of a later batch."""


def measure(shards: int) -> Measured:
    counts = np.random.default_rng(0).integers(SAMPLES // 2, 3 * SAMPLES // 2, shards)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak of making the counts
    baseline, start = memory_mb("VmRSS"), time.perf_counter()
    order = TrainingOrder(counts, batch_size=BATCH, seed=0)
    order.check(RANKS, 8)
    places = order.places(0, rank=RANK, ranks=RANKS)
    seconds = time.perf_counter() - start
    memory = memory_mb("VmHWM") - baseline
    assert len(places.shard) == BATCH // RANKS
    start = time.process_time()
    for step in range(1, LATER + 1):
        order.places(step, rank=RANK, ranks=RANKS)
    return Measured(seconds, memory, 1000 * (time.process_time() - start) / LATER)


def measure_alone(shards: int) -> Measured:
    """Measure in a process of its own, which a fork spares the imports."""
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("fork")) as pool:
        return pool.submit(measure, shards).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one process for each number of shards")
    processes = 1 if parser.parse_args().quick else 7
    print(f"{RANKS:,} ranks, global batch {BATCH:,}; one rank")
    print(f"{'shards':>10}{'samples':>16}{'s to first batch':>18}{'MB above':>10}{'ms/later batch':>16}")
    found = {}
    for shards in SHARDS:
        runs = [measure_alone(shards) for _ in range(processes)]
        found[shards] = measured = Measured(*map(median, zip(*runs, strict=True)))
        numbers = f"{measured.seconds:18.3f}{measured.memory:10.0f}{measured.later:16.3f}"
        print(f"{shards:10,}{shards * SAMPLES:16,}{numbers}", flush=True)
    most = found[SHARDS[-1]]
    growth = most.later / found[SHARDS[0]].later
    for name, value, bar, meaning in (
        ("planning_memory", most.memory, MEGABYTES, "MB"),
        ("planning_growth", growth, GROWTH, f"later batch, {SHARDS[-1]:,} shards to {SHARDS[0]:,}"),
        ("planning", most.seconds, SECONDS, "seconds"),
    ):
        print(f"{name} ratio={value:.2f} bar={bar:g} {'ok' if value <= bar else 'short'} ({meaning})")


if __name__ == "__main__":
    main()
