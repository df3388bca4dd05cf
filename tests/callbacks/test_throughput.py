"""The instrument on a clock that training turns: every phase takes a time that is known."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

from mmlab import collectives
from mmlab.batch import NOBODY, Batch, Input
from mmlab.callbacks import phases, throughput
from mmlab.callbacks.peaks import Peak
from mmlab.callbacks.phases import PhaseProfiler
from mmlab.callbacks.throughput import Throughput

SAMPLES, WIDTH = 4, 3
SECONDS = {"data": 4.0, "copy": 1.0, "forward": 2.0, "backward": 3.0, "optimizer": 1.5, "other": 0.5}
FLOPS = 3 * 2 * SAMPLES * WIDTH  # 2 a multiply-add: forward, gradient of the weight, gradient of the input
pytestmark = pytest.mark.filterwarnings("ignore:.*(many workers|logging interval|batch_size).*")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def pass_(self, phase: str) -> None:
        self.now += SECONDS[phase]


def batch(steps: int = 5) -> Batch:
    """Text of which one row is nobody's: `SAMPLES - 1` rows of 2 valid tokens."""
    owner = torch.arange(SAMPLES)
    owner[-1] = NOBODY
    text = Input(
        data=torch.ones(SAMPLES, steps, dtype=torch.int64),
        owner=owner,
        present=owner != NOBODY,
        length=torch.full((SAMPLES,), 2),
    )
    return Batch(
        keys=("k",) * SAMPLES,
        place=torch.arange(SAMPLES),
        valid=torch.ones(SAMPLES, dtype=torch.bool),
        group=torch.arange(SAMPLES),
        text=text,
    )


class Batches:
    """A loader that takes its time."""

    def __init__(self, clock: Clock, lengths: Iterable[int]) -> None:
        self.clock, self.lengths = clock, tuple(lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[Batch]:
        for length in self.lengths:
            self.clock.pass_("data")
            yield batch(length)


class SlowSGD(torch.optim.SGD):
    clock: Clock

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        self.clock.pass_("optimizer")
        return loss


class Module(L.LightningModule):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.layer = nn.Linear(WIDTH, 1, bias=False)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        self.clock.pass_("copy")
        return batch

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.clock.pass_("forward")
        return self.layer(torch.ones(SAMPLES, WIDTH, requires_grad=True)).sum()

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        super().backward(loss, *args, **kwargs)
        self.clock.pass_("backward")

    def on_train_batch_end(self, *_: Any) -> None:
        self.clock.pass_("other")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = SlowSGD(self.parameters(), lr=0.1)
        optimizer.clock = self.clock
        return optimizer


class Validating(Module):
    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.clock.now += 1000


class Warming(Module):
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.clock.now += 100 if self.trainer.global_step == 0 else 0
        return super().training_step(batch, batch_idx)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(phases.time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(throughput, "peak", lambda *_: Peak(100.0, "a table"))
    return clock


class Kept(CSVLogger):
    """Keeps what was logged last."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.numbers: dict[str, float] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:  # type: ignore[override]
        self.numbers = metrics


def fit(
    clock: Clock,
    lengths: Iterable[int] = (5,) * 6,
    *,
    kind: type[Module] = Module,
    directory: Path | None = None,
    **settings: Any,
) -> dict[str, float]:
    """Train; returns what was logged at last."""
    logger = Kept(directory or Path())
    trainer = L.Trainer(
        **{"max_epochs": 1, "log_every_n_steps": 2, **settings},
        accelerator="cpu",
        callbacks=[Throughput(directory)],
        logger=logger,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(kind(clock), Batches(clock, lengths), Batches(clock, (5,)) if kind is Validating else None)
    assert not isinstance(trainer.profiler, PhaseProfiler)
    found = {name: float(value) for name, value in trainer.callback_metrics.items()} | logger.numbers
    return {name.removeprefix("train/"): value for name, value in found.items()}


TOTAL = sum(SECONDS.values())


def test_every_phase_has_its_share(clock: Clock) -> None:
    logged = fit(clock)
    for phase, seconds in SECONDS.items():
        assert logged[f"time/{phase}"] == pytest.approx(seconds / TOTAL), phase
    assert logged["time/communication"] == 0
    assert logged["data_wait"] == pytest.approx(SECONDS["data"] / TOTAL)
    assert logged["samples_per_second"] == pytest.approx(SAMPLES / TOTAL)
    assert logged["tokens_per_second"] == pytest.approx((SAMPLES - 1) * 2 / TOTAL)
    assert logged["tflops"] == pytest.approx(FLOPS / TOTAL / 1e12)
    assert logged["mfu"] == pytest.approx(FLOPS / TOTAL / 100)
    assert 0.01 < logged["peak_memory_gb"] < 100


def test_validation_in_between_does_not_count(clock: Clock) -> None:
    logged = fit(clock, kind=Validating, val_check_interval=2)
    assert logged["samples_per_second"] == pytest.approx(SAMPLES / TOTAL, rel=0.05)
    # What passed after the step before validation is left out with it.
    assert logged["time/data"] == pytest.approx(SECONDS["data"] / TOTAL, rel=0.05)


def test_the_first_step_does_not_count_unless_it_is_the_only_one(clock: Clock) -> None:
    several, one = (fit(clock, (5,) * count, kind=Warming) for count in (4, 1))
    assert several["samples_per_second"] == pytest.approx(SAMPLES / TOTAL)
    assert one["samples_per_second"] == pytest.approx(SAMPLES / (TOTAL + 100), rel=0.01)


def test_accumulated_batches_add_up_to_steps(clock: Clock) -> None:
    logged = fit(clock, (5,) * 8, accumulate_grad_batches=2)
    step = 2 * (TOTAL - SECONDS["optimizer"]) + SECONDS["optimizer"]
    assert logged["samples_per_second"] == pytest.approx(2 * SAMPLES / step)
    assert logged["time/optimizer"] == pytest.approx(SECONDS["optimizer"] / step)
    assert logged["tflops"] == pytest.approx(2 * FLOPS / step / 1e12)


def test_samples_of_all_ranks_count(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput.collectives, "world_size", lambda: 4)
    monkeypatch.setattr(throughput.Profiles, "begin", lambda _: False)
    assert collectives.world_size() == 4
    logged = fit(clock)
    assert logged["samples_per_second"] == pytest.approx(4 * SAMPLES / TOTAL)
    assert logged["tflops"] == pytest.approx(FLOPS / TOTAL / 1e12)


def test_a_step_of_new_shapes_is_counted_once(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[bool] = []
    begin = throughput.StepFlops.begin
    monkeypatch.setattr(throughput.StepFlops, "begin", lambda *a: begun.append(begin(*a)) or begun[-1])
    fit(clock, (5, 5, 40, 5, 40, 41, 5))
    assert begun == [True, False, True, False, False, False, False]  # 41 is within 4.4 % of 40


def test_speed_is_kept_and_said_once(clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(throughput, "rank_zero_info", said.append)
    monkeypatch.setattr(throughput, "_valid_workers", lambda *_: (1, 2, 4))
    fit(clock, directory=tmp_path, max_epochs=3)
    kept = json.loads((tmp_path / "speed.json").read_text())
    assert said == ["speed: waiting for data 33 % of the time: 1 more worker (data.loading.num_workers 1)"]
    assert kept["verdict"].startswith("waiting for data 3")
    assert kept["epoch"] == 2
    assert kept["peak_source"] == "a table"
    assert kept["time/backward"] == pytest.approx(SECONDS["backward"] / TOTAL, rel=0.02)


def test_nothing_stays_behind_when_a_step_fails(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ArithmeticError("no")

    monkeypatch.setattr(Module, "training_step", fail)
    with pytest.raises(ArithmeticError):
        fit(clock)
    from torch.utils._python_dispatch import _get_current_dispatch_mode

    assert _get_current_dispatch_mode() is None


def test_the_profiler_of_the_user_is_told_too(clock: Clock, tmp_path: Path) -> None:
    profiler = L.pytorch.profilers.SimpleProfiler(dirpath=tmp_path, filename="times")
    fit(clock, profiler=profiler)
    assert "train_dataloader_next" in next(tmp_path.glob("*times*")).read_text()
