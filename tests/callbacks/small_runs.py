"""A small retrieval task with blocks to open, its batches, and a run of it on one or two gloo ranks."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import ParallelStrategy
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from torchmetrics import Metric

from mmlab import collectives
from mmlab.adaptation.method import Method
from mmlab.adaptation.policy import Policy
from mmlab.batch import Batch, Input, Modality
from mmlab.models.dual_encoder import DualEncoder, DualEncoderOutput, Tower
from mmlab.models.encoders.encoder import Encoded, Encoder
from mmlab.models.encoders.signal import SignalEncoder
from mmlab.objectives.contrastive import InfoNCE
from mmlab.optim import Optimization
from mmlab.tasks.retrieval import RetrievalTask

SAMPLES = 8
"""Of a global batch."""


class Layer(nn.Module):
    """A residual block."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.linear = nn.Linear(dim, dim)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = tokens + self.linear(self.norm(tokens)).tanh()
        return out


class Words(Encoder):
    """A table of words, three blocks, a norm."""

    modality = Modality.TEXT
    dim = 8

    def __init__(self, layers: int = 3) -> None:
        super().__init__()
        self.table = nn.Embedding(10, self.dim)
        self.layers = nn.ModuleList(Layer(self.dim) for _ in range(layers))
        self.norm = nn.LayerNorm(self.dim)

    def encode(self, inputs: Input) -> Encoded:
        assert inputs.mask is not None
        tokens = self.table(inputs.data)
        for layer in self.layers:
            tokens = layer(tokens)
        return Encoded(self.norm(tokens), inputs.mask)


class Likeness(Metric):
    """Mean cosine of what belongs together, which takes no time."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(1), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(1), dist_reduce_fx="sum")

    def update(self, output: DualEncoderOutput) -> None:
        pairs = output.get(Modality.TEXT).vector * output.get(Modality.SIGNAL).vector
        self.total += pairs.sum()
        self.count += len(pairs)

    def compute(self) -> dict[str, float]:
        return {"likeness": float(self.total / self.count)}


class SmallTask(RetrievalTask):
    def make_metrics(self) -> Metric:
        return Likeness()

    def update_metrics(self, metrics: Metric, batch: Batch) -> None:
        metrics.update(self(batch))


def make_task(towers: str | Method | dict[str, Any], **settings: Any) -> SmallTask:
    """Two towers of three blocks each, the same weights each time."""
    torch.manual_seed(0)
    optimization = {"optimizer": partial(torch.optim.SGD, lr=0.01, momentum=0.9)} | settings
    return SmallTask(
        DualEncoder(text=Tower(Words(), dim=4), signal=Tower(SignalEncoder(2, dim=8, num_layers=3), dim=4)),
        objective=InfoNCE(),
        optimization=Optimization(**optimization),
        adaptation=Policy(towers if isinstance(towers, str | dict) else {"*": towers}),
    )


def make_batches(steps: int) -> list[Batch]:
    """This rank's share of each global batch."""
    generator = torch.Generator().manual_seed(0)
    owner, present = torch.arange(SAMPLES), torch.ones(SAMPLES, dtype=torch.bool)
    batches = []
    for step in range(steps):
        words = torch.randint(0, 10, (SAMPLES, 3), generator=generator)
        moves = torch.randn(SAMPLES, 5, 2, generator=generator)
        whole = Batch(
            keys=tuple(f"{step}-{n}" for n in range(SAMPLES)), place=owner + step * SAMPLES, valid=present,
            group=owner + step * SAMPLES,
            text=Input(words, owner, present, torch.full((SAMPLES,), 3)),
            signal=Input(moves, owner, present, torch.full((SAMPLES,), 5)),
        )  # fmt: skip
        share = SAMPLES // collectives.world_size()
        start = collectives.rank() * share
        batches.append(whole.select(torch.arange(start, start + share)))
    return batches


class Batches(L.LightningDataModule):
    """Goes on where the run stands, as mmlab's own data do; one batch an epoch."""

    def __init__(self, steps: int = 16, *, per_epoch: int = 1) -> None:
        super().__init__()
        self.steps = steps
        self.per_epoch = per_epoch

    def train_dataloader(self) -> DataLoader[Batch]:
        assert self.trainer is not None
        start = self.trainer.fit_loop.epoch_loop.batch_progress.total.processed
        batches = make_batches(self.steps)[start : start + self.per_epoch]
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(make_batches(1), batch_size=None)  # type: ignore[arg-type]

    def test_dataloader(self) -> DataLoader[Batch]:
        return self.val_dataloader()


class Trace(Callback):
    """Loss and number of trained tensors of each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.trained: list[int] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.losses.append(outputs["loss"].item())
        self.trained.append(sum(p.requires_grad for p in pl_module.parameters()))


class Run(NamedTuple):
    losses: list[float]
    trained: list[int]
    weights: dict[str, torch.Tensor]
    results: dict[str, float]


def make_trainer(root: Path, *callbacks: Callback, steps: int, **settings: Any) -> L.Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False,
        "max_steps": steps, "max_epochs": -1, "enable_progress_bar": False, "enable_model_summary": False,
        "default_root_dir": root, "num_sanity_val_steps": 0, "callbacks": list(callbacks),
        "use_distributed_sampler": False, "reload_dataloaders_every_n_epochs": 1, "limit_val_batches": 0,
    }  # fmt: skip
    return L.Trainer(**(defaults | settings))


def fit(
    task: SmallTask, root: Path, *callbacks: Callback, steps: int, resume: Path | None = None,
    save: Path | None = None, strategy: ParallelStrategy | None = None, per_epoch: int = 1, **settings: Any,
) -> Run:  # fmt: skip
    """Train on one device, or with a strategy as one of two ranks that exist already."""
    before = dict(os.environ)
    trace = Trace()
    if strategy is not None:
        ranks = collectives.world_size()
        os.environ |= {"LOCAL_RANK": str(collectives.rank()), "NODE_RANK": "0", "WORLD_SIZE": str(ranks)}
        # This process is one of those ranks already: Lightning must start none.
        strategy.cluster_environment = LightningEnvironment()
        settings |= {"devices": ranks, "strategy": strategy}
    try:
        trainer = make_trainer(root, *callbacks, trace, steps=steps, **settings)
        trainer.fit(task, Batches(per_epoch=per_epoch), ckpt_path=resume, weights_only=True)
        if save is not None:
            trainer.save_checkpoint(save)
    finally:
        os.environ.clear()
        os.environ.update(before)
    state = {name: value.detach() for name, value in task.state_dict().items()}
    weights = {
        name: value.full_tensor() if isinstance(value, DTensor) else value.clone()
        for name, value in state.items()
    }
    return Run(trace.losses, trace.trained, weights, getattr(task, "results", {}))
