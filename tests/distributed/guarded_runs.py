"""Fits in which some batches of the stream make the loss no number, in one process or in two ranks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins.environments import LightningEnvironment
from sharded_runs import STRATEGIES, make_data, retrieval, whole_weights
from torch import Tensor

from mmlab import collectives
from mmlab.batch import Batch
from mmlab.callbacks.non_finite import NonFinite, NonFiniteError
from mmlab.commands import rolled_back
from mmlab.objectives.loss import Loss
from mmlab.parallel.strategies import CheckpointFiles
from mmlab.tasks.retrieval import RetrievalTask

SIZE = 16
"""Of a global batch."""


class Guarded(NamedTuple):
    """A run, and what spoils it."""

    policy: Any = "stop"
    bad: tuple[int, ...] = ()
    """Global batches of the stream whose loss is no number."""
    rank: int = 0
    """On which it is none."""
    strategy: str = "single"
    steps: int = 8
    limit: int = 100
    skips: tuple[tuple[int, int], ...] = ()
    """What the data leave out from the start."""
    leaves_out: tuple[int, ...] = ()
    """The reference: updates that do not happen."""
    resume: Path | None = None
    save_every: int = 3
    workers: int = 0


class Seen(NamedTuple):
    """What a rank has seen."""

    batches: list[tuple[int, int, tuple[str, ...]]]
    """Step of training, global batch of the stream, keys."""
    weights: dict[str, Tensor]
    skips: list[tuple[int, int]]
    count: int
    error: str
    step: int


class SpoiledTask(RetrievalTask):
    """Its loss is no number in some batches."""

    bad: tuple[int, ...] = ()
    rank = 0

    def losses(self, batch: Batch) -> Mapping[str, Tensor | Loss]:
        found = super().losses(batch)
        at = int(batch.place[0]) // SIZE
        times = float("nan") if at in self.bad and collectives.rank() == self.rank else 1.0
        return {n: (x if isinstance(x, Loss) else Loss(x)).times(times) for n, x in found.items()}


class Watches(Callback):
    """Notes each batch, and leaves out the updates of the reference."""

    def __init__(self, leaves_out: tuple[int, ...]) -> None:
        self.leaves_out = leaves_out
        self.batches: list[tuple[int, int, tuple[str, ...]]] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        step = trainer.fit_loop.epoch_loop.batch_progress.total.ready - 1
        self.batches.append((step, int(batch.place[0]) // SIZE, batch.keys))

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step in self.leaves_out:
            pl_module.zero_grad(set_to_none=True)


def run(cache: Path, root: Path, guarded: Guarded) -> Seen:
    """Train, as one of the ranks that there are."""
    before = dict(os.environ)
    os.environ["MMLAB_CACHE"] = str(cache)
    settings: dict[str, Any] = {"strategy": "auto", "plugins": [CheckpointFiles()]}
    ranks = collectives.world_size()
    if ranks > 1:
        os.environ |= {"LOCAL_RANK": str(collectives.rank()), "NODE_RANK": "0", "WORLD_SIZE": str(ranks)}
        settings = {"strategy": STRATEGIES[guarded.strategy](), "plugins": [LightningEnvironment()]}
    guard, watches = NonFinite(guarded.policy, guarded.limit), Watches(guarded.leaves_out)
    keep = ModelCheckpoint(root / "kept", every_n_train_steps=guarded.save_every, save_top_k=-1)
    error = ""
    try:
        trainer = L.Trainer(
            accelerator="cpu", devices=ranks, max_steps=guarded.steps, logger=False, gradient_clip_val=1.0,
            limit_val_batches=0, num_sanity_val_steps=0, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=root, callbacks=[guard, watches, keep],
            log_every_n_steps=1000, **settings,
        )  # fmt: skip
        task = retrieval()
        task.__class__ = SpoiledTask
        assert isinstance(task, SpoiledTask)
        task.bad, task.rank = guarded.bad, guarded.rank
        data = make_data(SIZE)
        data.skips.know(guarded.skips)
        try:
            settings = {"model": task, "datamodule": data, "ckpt_path": guarded.resume, "weights_only": True}
            rolled_back.fit(trainer, settings)
        except NonFiniteError as stopped:
            error = str(stopped)
        skips = [(window.step, window.length) for window in data.skips]
        return Seen(watches.batches, whole_weights(task), skips, guard.count, error, trainer.global_step)
    finally:
        os.environ.clear()
        os.environ.update(before)


def finite(weights: dict[str, Tensor]) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in weights.values() if value.is_floating_point())
