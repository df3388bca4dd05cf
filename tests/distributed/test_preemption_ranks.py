"""SIGTERM to one of two ranks: both stop at the same step and save; nothing is broadcast before a step."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mmlab import collectives
from mmlab.callbacks import preemption
from mmlab.callbacks.checkpoints import Checkpoints
from mmlab.callbacks.preemption import Preemption

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec.*is deprecated:FutureWarning",
    "ignore:.*does not have many workers",
    "ignore:.*Checkpoint directory .* exists and is not empty",
)
STEPS = 24


class Line(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.layer(batch).square().mean()
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.layer(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Stop(Callback):
    """Sends one rank SIGTERM after a batch of one stage; counts batches."""

    def __init__(self, stage: str, step: int, rank: int) -> None:
        self.target = (stage, step, rank)
        self.seen = {"train": 0, "val": 0}

    def after(self, stage: str) -> None:
        self.seen[stage] += 1
        if self.target == (stage, self.seen[stage], collectives.rank()):
            os.kill(os.getpid(), signal.SIGTERM)

    def on_train_batch_end(self, *_: Any) -> None:
        self.after("train")

    def on_validation_batch_end(self, *_: Any) -> None:
        self.after("val")


class Stopped(NamedTuple):
    seen: dict[str, int]
    told: bool
    saved: list[str]
    step: int
    broadcasts: int


@contextmanager
def launched(devices: int) -> Iterator[Any]:
    """The strategy of ranks that run already."""
    if devices == 1:
        yield "auto"
        return
    before = dict(os.environ)
    os.environ |= {"LOCAL_RANK": str(collectives.rank()), "NODE_RANK": "0", "WORLD_SIZE": str(devices)}
    try:
        yield DDPStrategy(cluster_environment=LightningEnvironment(), process_group_backend="gloo")
    finally:
        os.environ.clear()
        os.environ.update(before)


def fit(folder: Path, devices: int, target: tuple[str, int, int], every: int) -> Stopped:
    """Train until somebody stops it."""
    stop = Stop(*target)
    checkpoint = Checkpoints(folder, save_last=True, every_n_train_steps=1000, save_on_exception=devices == 1)
    with launched(devices) as strategy:
        trainer = L.Trainer(
            accelerator="cpu", devices=devices, strategy=strategy, max_steps=STEPS, logger=False,
            val_check_interval=12, check_val_every_n_epoch=None, num_sanity_val_steps=0,
            enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
            callbacks=[stop, Preemption(every_n_steps=every), checkpoint],
        )  # fmt: skip
        data = DataLoader(torch.ones(64, 1), batch_size=2)
        with patch("torch.distributed.broadcast") as broadcast, suppress(SIGTERMException):
            trainer.fit(Line(), data, data)
    saved = sorted(path.name for path in folder.glob("*.ckpt"))
    return Stopped(stop.seen, trainer.received_sigterm, saved, trainer.global_step, broadcast.call_count)


@pytest.mark.parametrize("rank", [0, 1])
def test_both_ranks_stop_at_the_same_step_and_save(ranks: Any, tmp_path: Path, rank: int) -> None:
    first, second = ranks(fit, tmp_path, 2, ("train", 6, rank), 4)
    assert first == second
    # They ask after step 1, and then after every fourth.
    assert (first.step, first.told) == (9, True)
    assert "last.ckpt" in first.saved
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 9


def test_both_ranks_stop_within_a_validation(ranks: Any, tmp_path: Path) -> None:
    first, second = ranks(fit, tmp_path, 2, ("val", 3, 1), 4)
    assert first == second
    # Steps 1, 5, 9, then batches 1 and 5 of the validation after step 12.
    assert (first.seen, first.told) == ({"train": 12, "val": 5}, True)


def fit_slowly(folder: Path) -> Stopped:
    preemption.SECONDS = 0.0
    try:
        return fit(folder, 2, ("train", 6, 0), 1000)
    finally:
        preemption.SECONDS = 1.0


def test_slow_steps_are_asked_about_each_time(ranks: Any, tmp_path: Path) -> None:
    first, second = ranks(fit_slowly, tmp_path)
    assert (first.step, second.step) == (6, 6)


def test_without_a_signal_the_training_ends(ranks: Any, tmp_path: Path) -> None:
    first, second = ranks(fit, tmp_path, 2, ("train", -1, 0), 4)
    assert (first.step, first.told, first.broadcasts) == (STEPS, False, 0)
    assert (second.step, second.told, second.broadcasts) == (STEPS, False, 0)


def test_one_process_stops_after_the_step(tmp_path: Path) -> None:
    stopped = fit(tmp_path, 1, ("train", 6, 0), 4)
    assert (stopped.step, stopped.told) == (6, True)
    assert "last.ckpt" in stopped.saved


class SlowSteps(Callback):
    def on_train_batch_start(self, *_: Any) -> None:
        time.sleep(0.2)


def fit_with_fast_validations(folder: Path) -> list[int]:
    """Steps after which ranks ask, where a validation of many fast batches comes between slow steps."""
    preemption.SECONDS = 0.1
    asked: list[int] = []

    class Noting(Preemption):
        def _ask(self, trainer: L.Trainer) -> None:
            super()._ask(trainer)
            if trainer.training:
                asked.append(trainer.global_step)

    try:
        with launched(2) as strategy:
            trainer = L.Trainer(
                accelerator="cpu", devices=2, strategy=strategy, max_steps=8, logger=False,
                val_check_interval=4, check_val_every_n_epoch=None, num_sanity_val_steps=0,
                enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
                callbacks=[SlowSteps(), Noting(every_n_steps=1000)], enable_checkpointing=False,
            )  # fmt: skip
            trainer.fit(Line(), DataLoader(torch.ones(64, 1), batch_size=2), DataLoader(torch.ones(99, 1)))
    finally:
        preemption.SECONDS = 1.0
    return asked


def test_fast_validations_do_not_make_slow_steps_deaf(ranks: Any, tmp_path: Path) -> None:
    first, second = ranks(fit_with_fast_validations, tmp_path)
    assert first == second == list(range(1, 9))
