"""open_clip's training pipeline over tars, in an environment of its own; benchmarks/loader.py runs this file.

    python open_clip_pipeline.py BATCH_SIZE SAMPLES TAR [TAR ...]

Each line `WARM BATCHES` on standard input is answered with one line of JSON: seconds for so many batches, of
one worker, after the warm ones; wall time and the worker's own processor time.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from open_clip import SimpleTokenizer, __version__
from open_clip.transform import image_transform
from open_clip_train.data import get_wds_dataset


def worker_seconds() -> float:
    """Processor time of the worker."""
    (worker,) = multiprocessing.active_children()
    fields = Path(f"/proc/{worker.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    torch.set_num_threads(1)
    batch_size, samples, *tars = sys.argv[1:]
    settings = SimpleNamespace(
        train_data="::".join(tars),
        train_num_samples=int(samples),
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        seed=0,
        batch_size=int(batch_size),
        workers=1,
        world_size=1,
    )
    transform, tokenizer = image_transform(224, is_train=True), SimpleTokenizer()
    print(json.dumps({"version": __version__}), flush=True)
    for line in sys.stdin:
        warm, batches = map(int, line.split())
        batch = iter(get_wds_dataset(settings, transform, is_train=True, tokenizer=tokenizer).dataloader)
        for _ in range(warm):
            next(batch)
        start, began = time.perf_counter(), worker_seconds()
        for _ in range(batches):
            images, _ = next(batch)
        assert images.shape == (int(batch_size), 3, 224, 224)
        answer = {"wall": time.perf_counter() - start, "cpu": worker_seconds() - began}
        print(json.dumps(answer), flush=True)
        del batch


if __name__ == "__main__":
    main()
