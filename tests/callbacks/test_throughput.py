"""Speed and waiting share, on a clock that the test turns."""

from __future__ import annotations

from unittest.mock import NonCallableMock

import lightning as L
import pytest
import torch

from mmlab import collectives
from mmlab.batch import Batch
from mmlab.callbacks import throughput
from mmlab.callbacks.throughput import REPORT_EVERY, Throughput

SAMPLES = 8
BATCH = Batch(
    keys=("k",) * SAMPLES,
    place=torch.arange(SAMPLES),
    valid=torch.ones(SAMPLES, dtype=torch.bool),
    group=torch.arange(SAMPLES),
)


class Run:
    """Steps that wait one second for their batch and work three."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(throughput.time, "perf_counter", lambda: self.now)
        self.callback = Throughput()
        self.trainer = NonCallableMock(L.Trainer, is_last_batch=False)
        self.logged: list[dict[str, float]] = []
        self.module = NonCallableMock(
            L.LightningModule, log_dict=lambda values, **_: self.logged.append(values)
        )
        self.begin()

    def begin(self) -> None:
        self.callback.on_train_epoch_start(self.trainer, self.module)

    def step(self, number: int, *, last: bool = False) -> None:
        self.now += 1
        self.callback.on_train_batch_start(self.trainer, self.module, BATCH, number)
        self.now += 3
        self.trainer.is_last_batch = last
        self.callback.on_train_batch_end(self.trainer, self.module, None, BATCH, number)

    def validate(self, seconds: float) -> None:
        self.callback.on_validation_start(self.trainer, self.module)
        self.now += seconds
        self.callback.on_validation_end(self.trainer, self.module)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    return Run(monkeypatch)


def test_speed_and_wait(run: Run) -> None:
    for number in range(REPORT_EVERY):
        run.step(number)
    assert run.logged == [{"train/samples_per_second": SAMPLES / 4, "train/data_wait": 0.25}]


def test_the_last_batch_of_an_epoch_is_reported_too(run: Run) -> None:
    run.step(0)
    run.step(1, last=True)
    assert len(run.logged) == 1


def test_validation_between_steps_does_not_count(run: Run) -> None:
    run.step(0)
    run.validate(1000.0)
    run.step(1, last=True)
    assert run.logged == [{"train/samples_per_second": SAMPLES / 4, "train/data_wait": 0.25}]


def test_each_epoch_counts_anew(run: Run) -> None:
    run.step(0)
    run.now += 1000
    run.begin()
    run.step(0, last=True)
    assert run.logged == [{"train/samples_per_second": SAMPLES / 4, "train/data_wait": 0.25}]


def test_samples_of_all_ranks_count(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collectives, "world_size", lambda: 4)
    run.step(0, last=True)
    assert run.logged[0]["train/samples_per_second"] == 4 * SAMPLES / 4
