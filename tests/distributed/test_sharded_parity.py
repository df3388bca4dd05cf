"""Fifty steps give the same model however they are run: one process, DDP, FSDP2, recomputed, in parts.

Tolerances. With SGD, losses and weights differ by the rounding of float32 sums in another order: 1e-6 and
3e-7 were seen, 1e-5 and 2e-5 are allowed. AdamW makes steps of full size of gradients that are nothing but
rounding: 6e-4 was seen of weights, 5e-3 is allowed. Gradients are clipped in most steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import fused_tasks
import pytest
import torch
from pretraining_parts import tiny_text
from sharded_runs import (
    ADAMW,
    Fit,
    Record,
    answering,
    captions,
    classifying,
    make_data,
    pictures,
    pretraining,
    retrieval,
    run,
)
from tiny_language import tiny_language
from torch import Tensor

from mmlab.batch import Batch
from mmlab.data.module import ShardData
from mmlab.parallel.execution import Execution
from mmlab.tasks.base import BaseTask

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*in eval mode"),
    pytest.mark.filterwarnings("ignore:.*is already saved during checkpointing"),
]

RECOMPUTED = Execution(checkpointing=1.0)
IN_PARTS = Execution(micro_batch=4)
WAYS = {
    "ddp": Fit(strategy="ddp"),
    "fsdp2": Fit(strategy="fsdp2"),
    "fsdp2 recomputed": Fit(strategy="fsdp2", execution=RECOMPUTED),
    "fsdp2 in parts": Fit(strategy="fsdp2", execution=IN_PARTS),
    "hsdp": Fit(strategy="hsdp"),
    "ddp recomputed": Fit(strategy="ddp", execution=RECOMPUTED),
    "ddp in parts": Fit(strategy="ddp", execution=IN_PARTS),
}
SOME = ("ddp", "fsdp2 in parts")
"""Of tasks that differ little from one that is run in all ways."""
BOTH = ("ddp", "fsdp2")


class Case(NamedTuple):
    """A task whose training must not depend on how it is run."""

    make: Callable[[], BaseTask]
    tolerance: float = 2e-5
    """Of weights."""
    ways: Sequence[str] = tuple(WAYS)
    data: Callable[[int], ShardData] = make_data
    clip: float = 1.0
    """Norm that gradients are clipped to; some must be larger."""
    steps: int = 50

    @property
    def fit(self) -> Fit:
        """In one process."""
        return Fit(self.make, data=self.data, clip=self.clip, steps=self.steps)


TASKS = {
    "retrieval": Case(retrieval),
    "retrieval with AdamW": Case(partial(retrieval, optimization=ADAMW), tolerance=5e-3, ways=SOME),
    "retrieval with LoRA": Case(partial(retrieval, {"image": "full", "signal": "lora"}), ways=SOME),
    "question answering": Case(
        answering, data=pictures, clip=0.3, ways=("fsdp2", "fsdp2 recomputed", "ddp in parts")
    ),
    "question answering with LoRA": Case(
        partial(answering, {"language": "lora", "image": "full"}), data=pictures, clip=0.1, ways=("ddp",)
    ),
    "answer list": Case(classifying, clip=0.5, ways=("ddp", "fsdp2", "fsdp2 in parts", "hsdp")),
    "answer list with LoRA": Case(
        partial(classifying, {"image": "full", "signal": "lora"}), clip=0.5, ways=("ddp recomputed",)
    ),
    "pretraining": Case(pretraining, data=captions, ways=("ddp", "fsdp2", "fsdp2 in parts")),
    "sentiment": Case(fused_tasks.sentiment, data=fused_tasks.moods, ways=BOTH, steps=12, clip=0.1),
    "entities": Case(fused_tasks.entities, data=fused_tasks.tagged, ways=BOTH, steps=12),
    "relations": Case(fused_tasks.relations, data=fused_tasks.related, ways=BOTH, steps=12, clip=0.1),
    "key fields": Case(fused_tasks.key_fields, data=fused_tasks.documents, ways=BOTH, steps=12, clip=0.1),
    "recommendation": Case(
        fused_tasks.recommendation, data=fused_tasks.choices, ways=BOTH, steps=12, clip=0.1
    ),
    "retrieval, frozen": Case(partial(retrieval, {"image": "frozen", "signal": "full"}), ways=SOME),
}
"""Every task has a line here."""
QUICK = {
    ("retrieval", "ddp"),
    ("question answering", "fsdp2"),
    ("retrieval", "fsdp2 in parts"),
    ("answer list", "fsdp2"),
}
"""Run each time; the others with the slow tests."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("cache")
    tiny_language(cache / "language")
    tiny_text(cache / "text")
    fused_tasks.write_data(cache)
    return cache


@pytest.fixture(scope="module")
def alone(cache: Path) -> Callable[[str], Record]:
    """`alone(name)` is the run of a task in one process; made once."""
    made: dict[str, Record] = {}

    def of(name: str) -> Record:
        if name not in made:
            made[name] = run(cache, cache, TASKS[name].fit)
        return made[name]

    return of


def cases() -> list[Any]:
    return [
        pytest.param(name, way, marks=[] if (name, way) in QUICK else [pytest.mark.slow])
        for name, case in TASKS.items()
        for way in case.ways
    ]


@pytest.mark.parametrize(("name", "way"), cases())
def test_the_way_of_running_does_not_matter(
    ranks: Any, cache: Path, alone: Callable[[str], Record], name: str, way: str
) -> None:
    case = TASKS[name]
    fit = case.fit._replace(strategy=WAYS[way].strategy, execution=WAYS[way].execution)
    first, second = ranks(run, cache, cache, fit)
    assert (first.sharded > 10) == (WAYS[way].strategy != "ddp")
    check(first, second, alone(name), case.tolerance)
    assert max(first.norms) > 2 * case.clip, "no gradient is clipped"


@pytest.mark.slow
def test_pairs_of_a_rank_are_the_same_however_it_is_run(ranks: Any, cache: Path) -> None:
    """They are drawn from its own samples, so one process draws others than two ranks do."""
    fit = Fit(partial(pretraining, matching=True), data=captions, strategy="ddp", steps=20)
    first, second = ranks(run, cache, cache, fit)
    for strategy, execution in (("fsdp2", Execution()), ("fsdp2", IN_PARTS)):
        way = fit._replace(strategy=strategy, execution=execution)
        for one, other in zip((first, second), ranks(run, cache, cache, way), strict=True):
            assert other.losses == pytest.approx(one.losses, abs=1e-5)
            for name, value in one.weights.items():
                close(other.weights[name], value, 2e-5, name)


def bare_loop(batches: list[Batch], accumulate: int) -> dict[str, Tensor]:
    """The weights after training on some batches, as one would write it down without any framework."""
    task = retrieval()
    task.train()
    steps = len(batches) // accumulate
    optimizer = task.optimization.build_optimizer(task.named_parameters())
    schedule = task.optimization.build_schedule(optimizer, steps)
    for step in range(steps):
        optimizer.zero_grad()
        for batch in batches[step * accumulate :][:accumulate]:
            (task.losses(batch)["image_signal"].value / accumulate).backward()
        torch.nn.utils.clip_grad_norm_(task.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return task.state_dict()


def test_one_process_is_a_bare_loop(alone: Callable[[str], Record]) -> None:
    record = alone("retrieval")
    for name, value in bare_loop(record.batches, 1).items():
        close(record.weights[name], value, 1e-6, name)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_accumulated_gradients_are_the_mean_over_batches(ranks: Any, cache: Path, strategy: str) -> None:
    """The loss of accumulated batches is the mean of their losses: each compares its own samples only.

    So accumulation is not the same as a larger batch, which parts of a batch are (`micro_batch`).
    """
    fit = Fit(steps=25, accumulate=2)
    alone = run(cache, cache, fit)
    first, second = ranks(run, cache, cache, fit._replace(strategy=strategy))
    check(first, second, alone, 2e-5)
    for name, value in bare_loop(alone.batches, 2).items():
        close(alone.weights[name], value, 1e-6, name)


def test_the_runs_go_somewhere(alone: Callable[[str], Record]) -> None:
    """What is the same in all of them is not the start."""
    untrained, trained = retrieval().state_dict(), alone("retrieval").weights
    moved = [name for name, value in untrained.items() if not torch.allclose(value, trained[name], atol=1e-3)]
    assert len(moved) > 50


def check(first: Record, second: Record, alone: Record, tolerance: float) -> None:
    """Both ranks have what one process has."""
    losses = [(a + b) / 2 for a, b in zip(first.losses, second.losses, strict=True)]
    assert losses == pytest.approx(alone.losses, abs=1e-5 if tolerance < 1e-3 else 1e-3, rel=0)
    assert first.norms == pytest.approx(alone.norms, rel=1e-3)
    for name, value in alone.weights.items():
        close(first.weights[name], value, tolerance, name)
        assert torch.equal(first.weights[name], second.weights[name]), name


def close(got: Tensor, wanted: Tensor, tolerance: float, name: str) -> None:
    torch.testing.assert_close(got, wanted, rtol=0, atol=tolerance, msg=lambda text: f"{name}: {text}")
