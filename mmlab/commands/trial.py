"""Some training steps of a config in parts of a size: do they fit in a memory, and how fast are they?

On a GPU this process tries; what does not fit is given back. Elsewhere each trial has a process of its own
with a limit on its data, so that nothing but this process can run out of memory.
"""

from __future__ import annotations

import gc
import logging
import math
import multiprocessing
import resource
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from mmlab.batch import Batch
from mmlab.callbacks.memory import peak_memory, reset_peak
from mmlab.commands.train import Parts, build
from mmlab.parallel.tuning import Trial

_STEPS = 3
"""The first makes the states of the optimizer, the second is the first beside them, the last is timed."""
_NO_MEMORY = (
    "out of memory", "allocate memory", "not enough memory", "bad_alloc", "alloc_failed",
    "create a primitive", "start new thread",
)  # fmt: skip
"""What torch and the libraries below it say."""


class Unbuilt(Parts):
    """A config that is read and checked, of which nothing is built until it is asked for."""

    ranks: int
    """Processes that the config asks for."""
    settings: Namespace

    def before_instantiate_classes(self) -> None:
        """Look before the trainer is set to one process."""
        config = self.config[self.subcommand]
        self.ranks = _devices(config.trainer) * int(config.trainer.num_nodes)
        self.settings = config
        super().before_instantiate_classes()

    def _set_seed(self) -> None:
        """As always, but without a line about it for each trial."""
        with _warnings_alone("lightning.fabric.utilities.seed"):
            super()._set_seed()

    def instantiate_classes(self) -> None:
        """Not yet."""

    def instantiate(self) -> None:
        """Build task, data and trainer."""
        super().instantiate_classes()


@contextmanager
def _warnings_alone(name: str) -> Iterator[None]:
    """Nothing below a warning of a logger."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _devices(trainer: Namespace) -> int:
    """Processes of a node."""
    if isinstance(trainer.devices, list):
        return len(trainer.devices)
    if str(trainer.devices).lstrip("-").isdigit() and int(trainer.devices) > 0:
        return int(trainer.devices)
    return max(1, torch.cuda.device_count()) if trainer.accelerator != "cpu" else 1


class _Repeated:
    """A loader of one batch, again and again."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return _STEPS

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(_STEPS):
            yield self.batch


class _Watch(Callback):
    """Takes the time of the last step."""

    seconds: float = math.inf

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start."""
        self._start = self._now(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop."""
        self.seconds = self._now(pl_module) - self._start

    def _now(self, module: LightningModule) -> float:
        if module.device.type == "cuda":
            torch.cuda.synchronize(module.device)
        return time.perf_counter()


def train(parts: Unbuilt, batch: Batch, samples: int) -> Trial:
    """Train some steps in this process.

    Args:
        parts: Built.
        batch: One rank's share.
        samples: Of a part.
    """
    task, device = parts.model, parts.trainer.strategy.root_device
    task.execution = replace(task.execution, micro_batch=samples if samples < len(batch) else None)
    watch = _Watch()
    settings = dict(parts.config_init[parts.subcommand].trainer) | {
        "callbacks": [watch], "logger": False, "max_steps": _STEPS, "max_epochs": -1, "max_time": None,
        "limit_train_batches": 1.0, "limit_val_batches": 0, "accumulate_grad_batches": 1,
        "overfit_batches": 0.0, "fast_dev_run": False,
        "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
    }  # fmt: skip
    reset_peak(device)
    with warnings.catch_warnings(), _warnings_alone("lightning.pytorch.utilities.rank_zero"):
        warnings.simplefilter("ignore")  # validation is left out, on purpose
        Trainer(**settings).fit(task, train_dataloaders=_Repeated(batch))
    return Trial(samples, peak_memory(device), len(batch) / watch.seconds)


def try_on_gpu(parts: Unbuilt, batch: Batch, samples: int, *, limit: int) -> Trial | None:
    """Train some steps; None where they take more memory than the limit."""
    device = parts.trainer.strategy.root_device
    total = torch.cuda.mem_get_info(device)[1]
    torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), device)
    try:
        return train(parts, batch, samples)
    except RuntimeError as error:  # torch's own for a lack of memory, or that of a library below it
        if not _is_short(error):
            raise
        return None
    finally:
        parts.model.zero_grad(set_to_none=True)
        gc.collect()
        torch.cuda.empty_cache()


def try_apart(words: Sequence[str], batch: Batch, samples: int, *, limit: int) -> Trial | None:
    """Train some steps in another process whose data are limited; None where they do not fit.

    Raises:
        ValueError: The config cannot be trained, for another reason.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(theirs, list(words), batch, samples, limit), daemon=True)
    process.start()
    theirs.close()
    try:
        answer = ours.recv()
    except EOFError:  # killed by a signal, as where an allocation fails at the wrong place
        process.join()
        answer = None if process.exitcode is not None and process.exitcode < 0 else "its error stands above"
    finally:
        process.join()
        ours.close()
    if isinstance(answer, str):
        raise ValueError(f"a training step failed, and not for lack of memory:\n{answer}")
    return None if answer is None else Trial(*answer)


def _serve(pipe: Connection, words: list[str], batch: Batch, samples: int, limit: int) -> None:
    """Answer what the steps took, None where they did not fit, or a text where they failed."""
    try:
        parts = build(Unbuilt, ["fit", *words])
        parts.instantiate()
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (limit + _untouched(), hard))
        pipe.send(tuple(train(parts, batch, samples)))
    except MemoryError:
        pipe.send(None)
    except (RuntimeError, OSError) as error:
        pipe.send(None if _is_short(error) else traceback.format_exc())
    except ValueError as error:
        pipe.send(str(error))


def _is_short(error: Exception) -> bool:
    """Whether memory was short."""
    return any(sign in str(error).lower() for sign in _NO_MEMORY)


def _untouched() -> int:
    """Bytes that this process has mapped as data but does not hold in memory."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    held = {
        line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("VmData", "VmRSS"))
    }
    return 1024 * max(0, held["VmData"] - held["VmRSS"])
