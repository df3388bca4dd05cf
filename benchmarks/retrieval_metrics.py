"""R@1, R@5 and R@10 from embeddings, five captions an image: mmlab beside torchmetrics.

Each measurement runs in a process of its own, on one thread, and counts CPU seconds from embeddings to
values: the matrix product too, the best of three runs for mmlab and one for torchmetrics. Memory is the
peak of the first run above what the process held with the embeddings made (Linux only).

torchmetrics computes the three numbers with RetrievalHitRate, whose cost is that of RetrievalRecall and
whose definition is that of R@k in the retrieval literature; the ratio is that of these three. A row shows
it for R@1 alone, too. mmlab computes MRR, nDCG@10, mAP, the median rank and the levels of chance besides.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.retrieval import RetrievalHitRate

from mmlab.batch import Embeddings
from mmlab.metrics.ranking import evaluate_direction

BAR = 20
FULL, QUICK = 5000, 1000
CAPTIONS = 5
DIM = 512


def make(images: int) -> tuple[Embeddings, Embeddings]:
    """Unit vectors of images and of captions near their image."""
    generator = torch.Generator().manual_seed(0)
    image = F.normalize(torch.randn(images, DIM, generator=generator), dim=1)
    caption = image.repeat_interleave(CAPTIONS, dim=0)
    caption += 0.35 * torch.randn(len(caption), DIM, generator=generator)
    group = torch.arange(images)
    of_image = group.repeat_interleave(CAPTIONS)
    return Embeddings(image, group, group), Embeddings(F.normalize(caption, dim=1), of_image, of_image)


def with_mmlab(images: Embeddings, captions: Embeddings) -> list[float]:
    return list(evaluate_direction(images, captions)[:3])


def with_torchmetrics(images: Embeddings, captions: Embeddings, depths: tuple[int, ...]) -> list[float]:
    metrics = MetricCollection({f"r{k}": RetrievalHitRate(top_k=k) for k in depths})
    # In batches, as an evaluation feeds it; above 0, because it takes nothing below 0 for relevant.
    for rows in torch.arange(len(images.group)).split(500):
        scores: Tensor = images.vector[rows] @ captions.vector.T + 2
        relevant = images.group[rows, None] == captions.group
        metrics.update(scores, relevant, indexes=rows[:, None].expand_as(scores))
    values = metrics.compute()
    return [values[f"r{k}"].item() for k in depths]


IMPLEMENTATIONS: dict[str, tuple[Callable[[Embeddings, Embeddings], list[float]], int]] = {
    "mmlab": (with_mmlab, 3),
    "torchmetrics R@1": (partial(with_torchmetrics, depths=(1,)), 1),
    "torchmetrics": (partial(with_torchmetrics, depths=(1, 5, 10)), 1),
}


def memory_mb(field: str) -> float:
    """Memory of this process: VmRSS is what it holds, VmHWM the most it held since the last reset."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 2**10


class Measured(NamedTuple):
    """What one implementation needed, and what it found."""

    seconds: float
    memory: float
    values: list[float]


def measure(name: str, images: int) -> Measured:
    function, repeats = IMPLEMENTATIONS[name]
    rows = make(images)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak of making the rows
    baseline, seconds, memory = memory_mb("VmRSS"), float("inf"), 0.0
    for repeat in range(repeats):
        start = time.process_time()
        values = function(*rows)
        seconds = min(seconds, time.process_time() - start)
        memory = memory_mb("VmHWM") - baseline if repeat == 0 else memory
    return Measured(seconds, memory, values)


def measure_alone(name: str, images: int) -> Measured:
    """Measure in a process of its own, which a fork spares the imports."""
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("fork")) as pool:
        try:
            return pool.submit(measure, name, images).result()
        except BrokenProcessPool:
            sys.exit(f"{name} did not survive {images} images, for memory perhaps: give fewer with --images")


def verdict(name: str, ratio: float) -> str:
    return f"{name} ratio={ratio:.1f} bar={BAR} {'ok' if ratio >= BAR else 'short'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help=f"compare at {QUICK:,} images instead of {FULL:,}"
    )
    parser.add_argument("--images", type=int, help="compare at this number of images")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    compared = arguments.images if arguments.images is not None else QUICK if arguments.quick else FULL
    runs: dict[str, Measured] = {}
    print(f"{'':18}{'images':>8}{'captions':>10}{'CPU s':>10}{'MB above':>10}   R@1    R@5    R@10")
    for name, images in dict.fromkeys([("mmlab", FULL), *((name, compared) for name in IMPLEMENTATIONS)]):
        found = runs[name] = measure_alone(name, images)
        size = f"{name:18}{images:8,}{images * CAPTIONS:10,}"
        values = "".join(f"{value:7.4f}" for value in found.values)
        print(f"{size}{found.seconds:10.3f}{found.memory:10.0f} {values}", flush=True)
    ours, theirs = runs["mmlab"], runs["torchmetrics"]
    one = runs["torchmetrics R@1"].seconds / ours.seconds
    memory = theirs.memory / ours.memory
    print(f"torchmetrics / mmlab at {compared:,} images: memory {memory:.1f}; R@1 alone, time {one:.1f}")
    if compared == FULL:
        print(verdict("retrieval_metrics_memory", memory))
    print(verdict("retrieval_metrics", theirs.seconds / ours.seconds))


if __name__ == "__main__":
    main()
