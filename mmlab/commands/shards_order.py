"""`mmlab shards order`: which samples each rank gets at each step, from the data part of a config alone."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from jsonargparse import ArgumentParser, Namespace

from mmlab.commands.command_line import CommandLine
from mmlab.commands.shards_check import plain
from mmlab.commands.train import build
from mmlab.data.module import ShardData
from mmlab.data.order import Order
from mmlab.data.samples import SampleSet
from mmlab.tasks.base import BaseTask


class Dealt(NamedTuple):
    """One step of training."""

    step: int
    ranks: list[list[str]]
    """Keys of the samples of each rank."""


class DataLine(CommandLine):
    """Reads the configs of a run as `fit` does, every key of them, and builds nothing but the data."""

    def add_core_arguments_to_parser(self, parser: Any) -> None:
        """As for `fit`, but a config may go without a model."""
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        parser.add_lightning_class_args(BaseTask, "model", subclass_mode=True, required=False)
        parser.add_lightning_class_args(ShardData, "data")

    def _set_seed(self) -> None:
        """Nothing here draws random numbers from torch."""

    def before_instantiate_classes(self) -> None:
        """No run directory: nothing runs."""

    def instantiate_classes(self) -> None:
        """The data only."""
        parser = ArgumentParser()
        parser.add_class_arguments(ShardData, "data")
        config = Namespace(data=self.config[self.subcommand].data)
        self.datamodule = parser.instantiate(config).data

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing runs."""


def run(arguments: argparse.Namespace) -> int:
    """Print the order that the command asks for.

    Raises:
        ValueError: The steps, the config, the ranks or the workers do not fit.
    """
    steps = _steps(arguments.steps)
    data = build(DataLine, ["fit", *arguments.words]).datamodule
    data.prepare_data()
    samples, order = data.plan("train", ranks=max(1, arguments.ranks))
    workers = data.loading.num_workers if arguments.workers is None else arguments.workers
    if arguments.ranks < 1 or workers < 0:
        raise ValueError(f"--ranks {arguments.ranks} --workers {workers}: at least 1 rank and 0 workers")
    order.check(arguments.ranks, workers)
    for dealt in deal(samples, order, steps, ranks=arguments.ranks):
        if arguments.json:
            print(json.dumps(dealt._asdict()))
        else:
            print("\n".join(_block(dealt, workers)))
    return 0


def deal(samples: SampleSet, order: Order, steps: range, *, ranks: int) -> Iterator[Dealt]:
    """The keys of each rank at steps."""
    for step in steps:
        shares = [order.places(step, rank=rank, ranks=ranks) for rank in range(ranks)]
        keys = [[samples.key(int(a), int(b)) for a, b in zip(p.shard, p.sample, strict=True)] for p in shares]
        yield Dealt(step, keys)


def _steps(text: str) -> range:
    match = re.fullmatch(r"(\d+)(?::(\d+))?", text)
    if match is None or (match[2] is not None and int(match[2]) <= int(match[1])):
        raise ValueError(f"--steps {text}: give A:B with A below B, such as 100:104, or one step")
    first = int(match[1])
    return range(first, first + 1 if match[2] is None else int(match[2]))


def _block(dealt: Dealt, workers: int) -> Iterator[str]:
    """One step for people. Worker w of W builds the steps w, w + W, ... of a run that begins at step 0."""
    builder = "built by the rank itself" if workers == 0 else f"built by worker {dealt.step % workers}"
    yield f"step {dealt.step}, {builder}"
    width = len(str(len(dealt.ranks) - 1))
    for rank, keys in enumerate(dealt.ranks):
        yield f"  rank {rank:>{width}}: {' '.join(map(plain, keys))}"
