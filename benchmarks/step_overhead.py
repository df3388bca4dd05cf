"""A step of `mmlab fit` beside a step of a bare loop: same model, optimizer, schedule and batches in memory.

The whole command line runs, with its callbacks, loggers and checkpoints, on the retrieval task of
experiments/retrieval/smoke.yaml. Its batches come from an iterator that, each time it is asked for one, runs
a step of the bare loop first, on a copy of the model: the two take turns, so what else the machine does meets
both. Time from handing over a batch to being asked for the next is mmlab's. Steps are added up in stretches
of one logging interval; the ratio is the median over stretches of what both took one after the other.
"""

from __future__ import annotations

import argparse
import copy
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch

from mmlab.batch import Batch
from mmlab.commands.command_line import CommandLine
from mmlab.commands.train import build
from mmlab.tasks.base import BaseTask

BAR = 1.02
STEP = 0.1
"""Seconds that a step must take for the bar to hold."""
FULL, QUICK = 20, 4
STRETCH = 10
"""Steps between two logs."""
BATCHES = 4
SMOKE = Path(__file__).parents[1] / "experiments" / "retrieval" / "smoke.yaml"


class BareLoop:
    """What a person would write for this model."""

    def __init__(self, task: BaseTask, steps: int) -> None:
        self.model = copy.deepcopy(task.model).to(task.device).train()
        self.objective = copy.deepcopy(task.objective).to(task.device).train()
        parameters = [*self.model.named_parameters(), *self.objective.named_parameters()]
        self.optimizer = task.optimization.build_optimizer(parameters)
        self.schedule = task.optimization.build_schedule(self.optimizer, steps)
        self.device = task.device

    def step(self, batch: Batch) -> None:
        """Forward, backward, update."""
        batch = batch.to(self.device, non_blocking=True)
        output = self.model(batch)
        loss = self.objective(output.image, output.signal).value
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()


class TakingTurns:
    """Hands out batches, runs the bare loop in between, and times both."""

    def __init__(self, task: BaseTask, batches: list[Batch], steps: int) -> None:
        self.bare = BareLoop(task, steps)
        self.batches = batches
        self.steps = steps
        self.clocks: tuple[Callable[[], float], ...] = (time.perf_counter, time.process_time)
        self.times: dict[str, list[list[float]]] = {"mmlab": [], "bare": []}

    def now(self) -> list[float]:
        """Seconds by the wall, and of this process on all cores."""
        if self.bare.device.type == "cuda":
            torch.cuda.synchronize()
        return [clock() for clock in self.clocks]

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        for number in range(self.steps):
            batch = self.batches[number % len(self.batches)]
            before = self.now()
            self.bare.step(batch)
            between = self.now()
            yield batch
            after = self.now()
            for name, start, end in (("bare", before, between), ("mmlab", between, after)):
                self.times[name].append([b - a for a, b in zip(start, end, strict=True)])


class Measured(CommandLine):
    """`mmlab fit` with those batches."""

    turns: TakingTurns

    def fit(self, **kwargs: Any) -> None:
        """Train on batches in memory."""
        self.model.to(self.trainer.strategy.root_device)
        batches = list(islice(self.datamodule.train_dataloader(), BATCHES))
        self.turns = TakingTurns(self.model, batches, self.trainer.max_steps)
        self.datamodule.train_dataloader = lambda: self.turns  # type: ignore[method-assign, assignment]
        super().fit(**kwargs)


def stretches(times: list[list[float]], clock: int) -> list[float]:
    """Seconds of each stretch, without the first: it warms up."""
    sums = [sum(step[clock] for step in times[i : i + STRETCH]) for i in range(0, len(times), STRETCH)]
    return sums[1 : len(times) // STRETCH]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} stretches of {STRETCH} steps")
    parser.add_argument("--stretches", type=int, help=f"number of stretches; {FULL} if not given")
    parser.add_argument("--batch", type=int, default=128, help="samples; more where steps are too short")
    arguments = parser.parse_args()
    count = arguments.stretches or (QUICK if arguments.quick else FULL)
    steps = (count + 1) * STRETCH + 1
    os.environ.setdefault("WANDB_MODE", "offline")
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "runs": folder, "data.source.init_args.train": 2 * BATCHES * arguments.batch,
            "data.batch_size": arguments.batch, "trainer.max_steps": steps, "trainer.devices": 1,
            "trainer.log_every_n_steps": STRETCH, "trainer.limit_val_batches": 0,
            "checkpoint.monitor": "null", "test_untrained": "false", "test_best": "false",
        }  # fmt: skip
        words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
        turns = build(Measured, ["fit", "--config", str(SMOKE), *words]).turns
    print(f"{'':10}{'ms/step':>10}{'CPU ms/step':>14}  median of {count} stretches of {STRETCH} steps")
    found = {name: [stretches(times, clock) for clock in (0, 1)] for name, times in turns.times.items()}
    for name, clocks in found.items():
        print(f"{name:10}" + "{:10.1f}{:14.1f}".format(*(1000 * median(c) / STRETCH for c in clocks)))
    pairs = [zip(found["mmlab"][clock], found["bare"][clock], strict=True) for clock in (0, 1)]
    wall, cpu = (median(ours / theirs for ours, theirs in pair) for pair in pairs)
    if median(found["bare"][0]) / STRETCH < STEP:
        print(f"a step takes less than {1000 * STEP:g} ms: raise --batch")
    print(f"step_overhead_cpu ratio={cpu:.3f} bar={BAR} {'ok' if cpu <= BAR else 'short'}")
    print(f"step_overhead ratio={wall:.3f} bar={BAR} {'ok' if wall <= BAR else 'short'}")


if __name__ == "__main__":
    main()
