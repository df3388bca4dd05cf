"""Losses and gradients that are not finite: the run stops, leaves the step out, or rolls back."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lightning as L
import torch
import torch.distributed as dist
from jaxtyping import Float
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from mmlab import collectives
from mmlab.batch import Batch
from mmlab.callbacks.checkpoints import files_of
from mmlab.callbacks.spared import spared
from mmlab.parallel.stored import open_checkpoint
from mmlab.runs.checkpoint import newest_good
from mmlab.runs.directory import write_json
from mmlab.runs.failure import RunFailedError
from mmlab.tasks.base import BaseTask

Policy = Literal["stop", "skip", "roll_back"]
WINDOWS = "skipped_windows.json"
"""File of the run directory: what training left out, as [step of training, batches]."""
STEPS = 32
"""Batches after which the ranks look at their losses at the latest."""
SECONDS = 5.0
"""Time after which they do."""
_NAMED = 16
"""Samples that a message names, of each rank."""
_REMEDY = (
    "a lower optimizer.lr or trainer.gradient_clip_val may help; --non_finite.policy skip leaves such steps "
    "out, roll_back goes back to the last checkpoint and leaves out the samples since then"
)
_log = logging.getLogger(__name__)


class NonFiniteError(RunFailedError):
    """Training has come to numbers that are not finite, and may not go on."""


class RollBack(Exception):  # noqa: N818  it is no error: training goes on
    """Training is to go on from a checkpoint; raised on all ranks after the same step."""

    def __init__(self, checkpoint: Path, reason: str) -> None:
        super().__init__(reason)
        self.checkpoint = checkpoint


class _Seen(NamedTuple):
    """What this rank saw in a batch."""

    step: int
    """Batches of training before it."""
    keys: tuple[str, ...]
    names: tuple[str, ...]
    values: Float[Tensor, " names"]
    """On the device."""


class _Bad(NamedTuple):
    """What was not finite in a batch of a rank."""

    step: int
    what: str
    keys: tuple[str, ...]


class NonFinite(Callback):
    """Sees to it that weights stay finite, and that none are saved that do not.

    Each loss of each batch is looked at, and the gradients of each update: of all ranks, accumulated, before
    they are clipped. The gradients of float16 are the business of its scaler, and only losses are looked at.

    - `stop` ends the run with the step, the losses and the samples. A GPU is not waited for: the numbers stay
      on the device until ranks look at them together, every few steps, at steps that are logged, and before
      each validation and checkpoint.
    - `skip` leaves the update out, on all ranks: no weight, no state of the optimizer and no statistic
      changes, the schedule goes on. Every rank waits for its device and for the others in each update.
    - `roll_back` goes on from the last checkpoint, and leaves out the samples from there to the bad step, as
      if they were not in the stream. The numbers are looked at as under `stop`.

    Logged are `train/non_finite_steps`, and `train/skipped_steps` or `train/roll_backs`.
    """

    def __init__(self, policy: Policy = "stop", limit: int = 100) -> None:
        """Settings.

        Args:
            policy: What to do: `stop`, `skip` or `roll_back`.
            limit: Steps that may be left out, or roll-backs; one more ends the run.

        Raises:
            ValueError: The limit is below 1.
        """
        if limit < 1:
            raise ValueError(f"non_finite.limit is {limit}: it must be at least 1")
        self.policy = policy
        self.limit = limit
        self._silenced: list[ModelCheckpoint] = []
        self.count = 0
        """Steps that were not finite and left out."""
        self._begin()

    def _begin(self) -> None:
        self._seen: list[_Seen] = []
        self._buffers: list[tuple[Tensor, Tensor]] = []
        self._step = 0
        self._keys: tuple[str, ...] = ()
        self._updating = False
        self._batches, self._interval, self._mark = 0, 1, time.perf_counter()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Learn which windows this run has left out before.

        Raises:
            ValueError: `roll_back` with data that leave nothing out, or that are to be overfitted.
        """
        if stage != "fit":
            return
        data, path = _data(trainer), _windows_file(trainer)
        if data is not None:
            known = _read_windows(path)
            known = collectives.gather_objects(known)[0]
            if known is not None:
                data.skips.know(known)
        overfits = trainer.overfit_batches > 0  # type: ignore[attr-defined]
        if self.policy == "roll_back" and (data is None or overfits):
            what = (
                "trainer.overfit_batches: the same batches come again" if overfits else "data without windows"
            )
            raise ValueError(f"non_finite.policy roll_back and {what}: set it to stop or skip")

    def state_dict(self) -> dict[str, Any]:
        """How many steps were left out."""
        return {"count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.count = int(state_dict["count"])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin; after a roll-back checkpoints are saved again where something fails."""
        self._begin()
        for callback in self._silenced:
            callback.save_on_exception = True
        self._silenced.clear()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Keep what a bad step may not change."""
        self._step, self._keys = trainer.fit_loop.epoch_loop.batch_progress.total.ready - 1, batch.keys
        if self.policy == "skip" and not self._updating:
            self._buffers = [(buffer, buffer.clone()) for buffer in _statistics(pl_module)]
        self._updating = True

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the losses of the batch."""
        assert isinstance(pl_module, BaseTask)
        losses = pl_module.step_losses
        values = torch.stack([loss.float() for loss in losses.values()])
        self._seen.append(_Seen(self._step, self._keys, tuple(losses), values))

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        """Look at the gradients, and leave the update out where it is to be."""
        if getattr(trainer.precision_plugin, "scaler", None) is None:
            norm = _norm(parameter.grad for parameter in pl_module.parameters())
            self._seen.append(_Seen(self._step, self._keys, ("gradients",), norm[None]))
        if self.policy != "skip":
            return
        bad = self._bad()
        self._seen.clear()
        if collectives.host_total([int(bad is not None)])[0] > 0:
            pl_module.zero_grad(set_to_none=True)  # an optimizer leaves alone what has no gradient
            for buffer, before in self._buffers:
                buffer.copy_(before)
            self.count += 1
            text = _tell(collectives.gather_objects(bad))
            if self.count > self.limit:
                limit = f"more than --non_finite.limit {self.limit} steps were not finite, the last one at "
                raise NonFiniteError(f"{limit}{text}")
            if trainer.is_global_zero:
                _log.warning("left out: %s", text)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Look at the losses, if it is time."""
        self._batches += 1
        if (batch_idx + 1) % trainer.accumulate_grad_batches != 0 and not trainer.is_last_batch:
            return
        self._updating = False
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        logged = every > 0 and trainer.global_step % every == 0
        if logged or self._batches >= self._interval:
            self._look(trainer)
        if logged:
            self._log(trainer, bad=0)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """No time for weights that are not finite."""
        if trainer.training or trainer.state.fn == "fit":
            self._look(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Nothing is left to be looked at later."""
        self._look(trainer)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse to save weights that are not finite; every rank comes here.

        Raises:
            NonFiniteError: They are not.
            RollBack: Nor are the losses, and training is to go back.
        """
        self._look(trainer)
        trained = [parameter for parameter in pl_module.parameters() if parameter.requires_grad]
        bad = not bool(torch.isfinite(_norm(trained)))
        if collectives.host_total([int(bad)])[0] > 0:
            raise NonFiniteError(
                f"step {self._step}: weights are not finite, the checkpoint is not saved; the last one is "
                f"good. The learning rate, or a callback that changes weights, may be the reason: {_REMEDY}"
            )

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Save no checkpoint of weights that are not finite."""
        known = isinstance(exception, NonFiniteError | RollBack)
        if known or (trainer.world_size == 1 and self.policy != "skip" and self._bad() is not None):
            for callback in trainer.checkpoint_callbacks:
                if isinstance(callback, ModelCheckpoint) and callback.save_on_exception:
                    callback.save_on_exception = False
                    self._silenced.append(callback)

    def _look(self, trainer: L.Trainer) -> None:
        """Look at the losses of all ranks since the last time; every rank calls it after the same update."""
        if not self._seen or self._updating or self.policy == "skip":
            return
        bad, now = self._bad(), time.perf_counter()
        seconds = (now - self._mark) / max(1, self._batches)
        notes = torch.tensor([-torch.inf if bad is None else -bad.step, seconds], dtype=torch.float64)
        if collectives.world_size() > 1:
            dist.all_reduce(notes, dist.ReduceOp.MAX, group=collectives.cpu_group())
        weights_only = any(
            getattr(found, "save_weights_only", False) for found in trainer.checkpoint_callbacks
        )
        # Before such checkpoints are saved nobody is asked.
        most = 1 if weights_only else STEPS
        self._interval = max(1, min(most, int(SECONDS / float(notes[1])) if notes[1] > 0 else most))
        self._batches, self._mark = 0, now
        self._seen.clear()
        if notes[0] > -torch.inf:
            first = int(-notes[0])
            text = _tell(collectives.gather_objects(bad if bad is not None and bad.step == first else None))
            self._log(trainer, bad=1)
            if self.policy == "stop" or trainer.interrupted:
                raise NonFiniteError(f"{text}\n{_REMEDY}")
            self._roll_back(trainer, first, text)

    def _bad(self) -> _Bad | None:
        """The first batch of this rank that was not finite; waits for the device."""
        if not self._seen or bool(torch.isfinite(torch.cat([seen.values for seen in self._seen])).all()):
            return None
        for seen in self._seen:
            named = zip(seen.names, seen.values.tolist(), strict=True)
            wrong = [f"{name} {value}" for name, value in named if not abs(value) < float("inf")]
            if wrong:
                return _Bad(seen.step, ", ".join(wrong), seen.keys)
        return None

    def _roll_back(self, trainer: L.Trainer, step: int, text: str) -> None:
        """Go back to the last checkpoint, and leave out what came since."""
        data: Any = _data(trainer)
        if len(data.skips) >= self.limit:
            raise NonFiniteError(
                f"{text}; --non_finite.limit allows {self.limit} roll-backs, which there were"
            )
        newest = _newest(trainer) if trainer.is_global_zero else None
        path, start = collectives.gather_objects(newest)[0] or ("", 0)
        if path == "":
            raise NonFiniteError(
                f"{text}; there is no checkpoint to roll back to: set checkpoint.every_n_train_steps"
            )
        data.skips.leave_out(start, step + 1)
        if trainer.is_global_zero:
            windows = _windows_file(trainer)
            windows.parent.mkdir(parents=True, exist_ok=True)
            with spared(windows):
                write_json(windows, {"windows": [list(window) for window in data.skips]})
            _log.warning("%s; back to %s, without the %d batches since", text, path, step + 1 - start)
        raise RollBack(Path(path), text)

    def _log(self, trainer: L.Trainer, *, bad: int) -> None:
        """Past Lightning, which would log at the next step that it logs."""
        back = len(getattr(_data(trainer), "skips", []))
        numbers = {"train/non_finite_steps": float(self.count + back + bad)}
        if self.policy != "stop":
            name = "skipped_steps" if self.policy == "skip" else "roll_backs"
            numbers[f"train/{name}"] = float(self.count if self.policy == "skip" else back)
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.log_metrics(numbers, step=trainer.global_step - 1)


def _norm(tensors: Iterable[Tensor | None]) -> Float[Tensor, ""]:
    """The norm of this rank's tensors or shards, finite if all entries are (and below 1e19); not waited for.

    Of 35 million gradients on one core it takes 15 ms where a step of AdamW takes 190 to 380; the largest
    entry would take 330.
    """
    found = [tensor.detach() for tensor in tensors if tensor is not None]
    own = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in found]
    return get_total_norm([tensor for tensor in own if tensor.numel() > 0]).float()


def _statistics(module: torch.nn.Module) -> list[Tensor]:
    """What the modules in training keep of what they see."""
    keeping = (m for m in module.modules() if m.training and getattr(m, "track_running_stats", False))
    return [buffer for found in keeping for buffer in found.buffers(recurse=False)]


def _data(trainer: L.Trainer) -> Any:
    """The data of the run, if they can leave out windows."""
    data = getattr(trainer, "datamodule", None)
    return data if hasattr(data, "skips") else None


def _read_windows(path: Path) -> list[Any] | None:
    """What was written; None: nothing was, or a lost node has left an empty file."""
    try:
        found: list[Any] = json.loads(path.read_text(encoding="utf-8"))["windows"]
    except (FileNotFoundError, ValueError):
        return None
    return found


def _windows_file(trainer: L.Trainer) -> Path:
    return Path(trainer.default_root_dir) / WINDOWS


def _newest(trainer: L.Trainer) -> tuple[str, int] | None:
    """The newest checkpoint that training can go on from, and the batches that were trained on before it."""
    files = files_of(trainer)
    if files is not None:
        files.wait()
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is not None:
            path = newest_good(Path(callback.dirpath))
            if path is not None:
                loops = open_checkpoint(path).rest["loops"]["fit_loop"]
                return str(path), int(loops["epoch_loop.batch_progress"]["total"]["processed"])
    return None


def _tell(found: list[_Bad | None]) -> str:
    """What was not finite, and with which samples."""
    step = next(bad.step for bad in found if bad is not None)
    parts = []
    for rank, bad in enumerate(found):
        if bad is not None:
            keys = [key for key in bad.keys if key]
            more = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
            where = f"on rank {rank} " if len(found) > 1 else ""
            parts.append(f"{bad.what} {where}with the samples {', '.join(keys[:_NAMED])}{more}")
    return f"step {step} is not finite: {'; '.join(parts)}"
