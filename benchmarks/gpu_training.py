"""How fast mmlab trains a task here; benchmarks/gpu.py's contenders use this file.

Two short epochs by Lightning's trainer: the first compiles and warms up, the second is measured by mmlab's
own instrument.
"""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch

from mmlab.batch import Batch
from mmlab.callbacks.throughput import Throughput
from mmlab.optim import Optimization
from mmlab.tasks.base import BaseTask


class Result(NamedTuple):
    """One line of the table."""

    name: str
    rate: float
    """Samples or tokens a second."""
    unit: str
    memory: float
    """GB at most: of tensors on a GPU, of the process else."""
    tflops: float
    """10^12 operations of the model a second."""
    note: str = ""


class Repeated:
    """A loader of one batch that lies ready."""

    def __init__(self, batch: Batch, steps: int) -> None:
        self.batch = batch.pin_memory() if torch.cuda.is_available() else batch
        self.steps = steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self.steps):
            yield self.batch


def quiet() -> None:
    """Leave lines of the table to this program's output."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")


def optimization() -> Optimization:
    return Optimization(partial(torch.optim.AdamW, lr=1e-4, weight_decay=0.1, fused=True))


def measure(name: str, task: BaseTask, loader: Any, *, device: str, unit: str) -> Result:
    """Train, and read what the instrument says."""
    with tempfile.TemporaryDirectory() as folder:
        L.Trainer(
            accelerator=device,
            devices=1,
            precision="bf16-mixed",
            max_epochs=2,
            callbacks=[Throughput(Path(folder))],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(task, loader)
        speed = json.loads((Path(folder) / "speed.json").read_text(encoding="utf-8"))
    rate = speed["tokens_per_second" if unit == "tokens/s" else "samples_per_second"]
    return Result(
        name, rate, unit, speed["peak_memory_gb"], speed.get("tflops", float("nan")), speed["verdict"]
    )


def tell(result: Result) -> None:
    """Give a line to the program that reads this one's output."""
    print(json.dumps(result._asdict()), flush=True)
