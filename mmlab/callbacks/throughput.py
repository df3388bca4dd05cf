"""The instrument of training: how fast it goes, where the time goes, what that is of the device's best."""

from __future__ import annotations

import os
import sys
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from jaxtyping import Int64
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from mmlab import collectives
from mmlab.batch import NOBODY, Batch
from mmlab.callbacks.communication import Profiles
from mmlab.callbacks.flops import Shapes, StepFlops, step_shapes
from mmlab.callbacks.memory import peak_memory, reset_peak, total_memory
from mmlab.callbacks.peaks import Peak, compute_precision, peak
from mmlab.callbacks.phases import DeviceClock, HostClock, Stretch, Timeline, unwatch, watch
from mmlab.callbacks.spared import spared
from mmlab.callbacks.speed import Speed, Step
from mmlab.callbacks.verdict import Setting, verdict
from mmlab.runs.directory import write_json
from mmlab.tasks.base import BaseTask

SHOWN = ("train/samples_per_second", "train/data_wait")
"""What other callbacks can show."""
_CACHEABLE = ("frozen", "probe")
"""Methods of adaptation under which an encoder gives the same for ever."""


class _Taken(NamedTuple):
    """A step whose end the device may not have come to."""

    batch_samples: int
    tokens: Int64[Tensor, ""] | None
    shapes: Shapes
    stretches: list[Stretch]
    usual: bool
    """Whether it took the time that steps take: it was not the first, nor looked at more closely."""


class Throughput(Callback):
    """Logs, under `train/`, what the steps since the last log did:

    - `samples_per_second` and `tokens_per_second` (valid tokens of text) of all ranks;
    - `tflops`, the model's operations a second on one device, and `mfu`, their share of its best;
    - `peak_memory_gb` of this rank: of tensors on a GPU, of the process else;
    - `time/{data,copy,forward,backward,optimizer,communication,other}`: shares of the time, and `data_wait`,
      the first of them.

    On a GPU, time is what passes in its queue of work: nothing waits for it. Steps that are counted or
    profiled are left out, and so is validation. An epoch ends with its own numbers, and with a sentence about
    what held it up.
    """

    def __init__(self, directory: Path | None = None) -> None:
        """Settings.

        Args:
            directory: Where `speed.json` keeps the numbers of the last epoch and its verdict; None: nowhere.
        """
        self.directory = directory
        self._said = ""
        self._timeline = Timeline(HostClock())

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Watch what Lightning does from here on."""
        device = pl_module.device
        self._timeline = Timeline(DeviceClock(device) if device.type == "cuda" else HostClock())
        watch(trainer, self._timeline)
        self._flops = StepFlops()
        self._profiles = Profiles(device)
        self._peak: Peak | None = None
        self._batches = 0
        self._window = Speed()
        reset_peak(device)
        self._begin()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count from here."""
        self._begin()

    def _begin(self) -> None:
        self._taken: deque[_Taken] = deque()
        self._unusual: list[Step] = []
        self._epoch = Speed()
        self._timeline.run()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Look closely at some steps, on the rank that reports."""
        stage = pl_module.adaptation.stage if isinstance(pl_module, BaseTask) else 0
        self._shapes = step_shapes(batch, stage)
        self._usual = self._batches > 0
        self._batches += 1
        if not trainer.is_global_zero:
            return
        counted = self._flops.begin(self._shapes, pl_module)
        may_profile = self._usual and not counted and collectives.world_size() > 1
        profiled = may_profile and self._profiles.begin()
        self._usual = self._usual and not counted and not profiled

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """What follows does not count as the model's."""
        self._flops.end()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """The step is done, as far as the program is concerned."""
        self._profiles.end()
        if self._peak is None and self._flops.of(self._shapes) is not None:
            # Here, in a step that was counted: measuring takes a moment.
            self._peak = peak(pl_module.device, compute_precision(str(trainer.precision), pl_module.device))
        stretches = self._timeline.take()
        self._taken.append(_Taken(len(batch), _tokens(batch), self._shapes, stretches, self._usual))
        self._read()
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        stepped = trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if stepped and every > 0 and trainer.global_step % every == 0:
            self._report(self._window, trainer, pl_module, log=True)
            self._window = Speed()
        elif trainer.is_last_batch:
            self._read(wait=True)
            self._report(self._epoch, trainer, pl_module, log=False)

    def _report(self, speed: Speed, trainer: L.Trainer, pl_module: L.LightningModule, *, log: bool) -> None:
        """Let other callbacks know what they show, and log all of it.

        Past Lightning, which takes a third of a millisecond for each name that it is to log.
        """
        if speed.steps == 0:
            return
        numbers = {f"train/{name}": n for name, n in self._numbers(speed, pl_module.device).items()}
        pl_module.log_dict({name: numbers[name] for name in SHOWN}, batch_size=1, logger=False)
        if log and trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.log_metrics(numbers, step=trainer.global_step - 1)

    def _read(self, *, wait: bool = False) -> None:
        """Add up the steps that the device has come to the end of."""
        clock = self._timeline.clock
        while self._taken:
            taken = self._taken[0]
            end = taken.stretches[-1].stop
            if wait:
                clock.wait(end)
            elif not clock.passed(end):
                return
            self._taken.popleft()
            flops = self._flops.of(taken.shapes)
            step = Step(taken.batch_samples, taken.tokens, flops, self._timeline.seconds(taken.stretches))
            if taken.usual:
                self._window.add(step)
                self._epoch.add(step)
            elif self._epoch.steps == 0:
                self._unusual.append(step)
        if wait and self._epoch.steps == 0:  # an epoch of nothing but such steps
            for step in self._unusual:
                self._window.add(step)
                self._epoch.add(step)

    def _numbers(self, speed: Speed, device: torch.device) -> dict[str, float]:
        numbers = speed.numbers(
            ranks=collectives.world_size(),
            communication=self._profiles.share,
            peak=None if self._peak is None else self._peak.flops,
        )
        return numbers | {"peak_memory_gb": peak_memory(device) / 1e9}

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Validation is no waiting for training data."""
        if trainer.state.fn == "fit":
            self._timeline.pause()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Training goes on."""
        if trainer.state.fn == "fit":
            self._timeline.run()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say what held the epoch up, unless that was said before."""
        self._read(wait=True)
        if not trainer.is_global_zero or self._epoch.steps == 0:
            return
        numbers = self._numbers(self._epoch, pl_module.device)
        shares = self._epoch.shares(self._profiles.share)
        said = verdict(shares, _setting(trainer, pl_module), numbers.get("mfu"))
        # Percentages change from epoch to epoch; what is to be done about them hardly ever.
        kind = "".join(letter for letter in said if not letter.isdigit())
        if kind != self._said:
            rank_zero_info(f"speed: {said}")
            self._said = kind
        if self.directory is not None:
            record: dict[str, object] = {"epoch": trainer.current_epoch, **numbers, "verdict": said}
            if self._peak is not None:
                record |= {"peak_tflops": self._peak.flops / 1e12, "peak_source": self._peak.source}
            path = self.directory / "speed.json"
            with spared(path):
                write_json(path, record)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Watch no longer."""
        unwatch(trainer)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Leave nothing behind."""
        if unwatch(trainer):
            self._flops.end()
            self._profiles.end()


def _tokens(batch: Batch) -> Int64[Tensor, ""] | None:
    """Valid tokens of text in a batch, on its device."""
    if batch.text is None or batch.text.length is None:
        return None
    return torch.where(batch.text.owner == NOBODY, 0, batch.text.length).sum()


def _setting(trainer: L.Trainer, pl_module: L.LightningModule) -> Setting:
    """What the run has switched on, as far as the verdict asks."""
    device, loader = pl_module.device, trainer.train_dataloader
    total = total_memory(device)
    caches = compiled = checkpointing = False
    if isinstance(pl_module, BaseTask):
        rows = pl_module.adaptation.describe(pl_module.model)
        cached = getattr(getattr(trainer, "datamodule", None), "features", None) is not None
        caches = not cached and any(row.method in _CACHEABLE for row in rows)
        compiled = pl_module.execution.compile
        checkpointing = pl_module.execution.checkpointing > 0
    return Setting(
        device=device.type,
        workers=getattr(loader, "num_workers", 0),
        valid_workers=_valid_workers(loader, trainer),
        caches=caches,
        low_precision="16" in str(trainer.precision),
        compiled=compiled,
        fused=all(group.get("fused") for optimizer in trainer.optimizers for group in optimizer.param_groups),
        accumulates=trainer.accumulate_grad_batches > 1,
        checkpointing=checkpointing,
        memory=None if total is None else peak_memory(device) / total,
    )


def _valid_workers(loader: Any, trainer: L.Trainer) -> tuple[int, ...]:
    """Numbers of workers that the machine has processors for and that divide the lane groups of the order."""
    here = max(1, trainer.world_size // trainer.num_nodes)
    processors = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    most = max(0, processors // here - 1)
    lanes = getattr(getattr(getattr(loader, "stream", None), "order", None), "lanes", None)
    return tuple(n for n in range(1, most + 1) if lanes is None or lanes.groups % n == 0)
