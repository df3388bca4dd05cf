"""Opens the stages of a staged training, between two optimizer steps."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy, Strategy
from lightning.pytorch.utilities import rank_zero_info
from torch.nn.parallel import DistributedDataParallel

from mmlab.adaptation.staged import Staged
from mmlab.batch import Batch
from mmlab.tasks.base import BaseTask


class Unfreezing(Callback):
    """Trains more of the model as :class:`~mmlab.adaptation.staged.Staged` says; without it, does nothing.

    All that is ever trained is in the optimizer from the start, so opening a stage changes no state that a
    checkpoint holds: a resumed run opens the stage of its checkpoint before the model is wrapped or sharded.
    """

    def __init__(self) -> None:
        self._staged: Staged | None = None
        self._best: float | None = None
        self._waited = 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Find what is staged.

        Raises:
            ValueError: Parts open at different times, the strategy cannot follow, or there is no score to
                wait for.
        """
        assert isinstance(pl_module, BaseTask)
        methods = [method for _, _, method in pl_module.adaptation.methods(pl_module.model)]
        staged = [method for method in methods if isinstance(method, Staged)]
        self._staged = staged[0] if staged else None
        if self._staged is None:
            return
        if any((m.every, m.patience) != (self._staged.every, self._staged.patience) for m in staged):
            raise ValueError("staged: all parts open together: give them the same every and patience")
        if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy | ModelParallelStrategy):
            raise ValueError(
                f"staged: {type(trainer.strategy).__name__} fixes what is trained when it wraps the model: "
                "use one device, DDP or FSDP2"
            )
        if self._staged.patience is not None and (_chooser(trainer) is None or not trainer.enable_validation):
            raise ValueError(
                "staged: patience needs a score: set checkpoint.monitor and validate, or leave patience out"
            )

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Open what is due, unless gradients are being accumulated."""
        assert isinstance(pl_module, BaseTask)
        if self._staged is None or batch_idx % trainer.accumulate_grad_batches != 0:
            return
        policy = pl_module.adaptation
        stage = min(self._due(trainer, self._staged, policy.stage), policy.last_stage)
        if stage <= policy.stage:
            return
        policy.open(pl_module.model, stage)
        pl_module.train()
        _wrap_anew(trainer.strategy)
        self._waited = 0
        count = sum(p.numel() for p in pl_module.model.parameters() if p.requires_grad)
        rank_zero_info(
            f"stage {stage} of {policy.last_stage} from step {trainer.global_step} on: {count:,} parameters "
            "are trained"
        )

    def _due(self, trainer: L.Trainer, staged: Staged, now: int) -> int:
        """The stage that the training should be in."""
        if staged.patience is not None:
            return now + (self._waited >= staged.patience)
        total = int(trainer.estimated_stepping_batches)
        opened = range(1, staged.stages + 1)
        return sum(staged.opening_step(stage, total) <= trainer.global_step for stage in opened)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count the validations since the best one."""
        chooser = _chooser(trainer)
        if (
            self._staged is None
            or self._staged.patience is None
            or chooser is None
            or trainer.sanity_checking
        ):
            return
        score = float(trainer.callback_metrics[str(chooser.monitor)])
        sign = 1 if chooser.mode == "max" else -1
        if self._best is None or sign * score > sign * self._best:
            self._best, self._waited = score, 0
        else:
            self._waited += 1

    def state_dict(self) -> dict[str, Any]:
        """How long it has waited; the stage itself is kept with the weights."""
        return {} if self._staged is None else {"best": self._best, "waited": self._waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on waiting."""
        self._best, self._waited = state_dict["best"], state_dict["waited"]


def _chooser(trainer: L.Trainer) -> ModelCheckpoint | None:
    """What chooses checkpoints by a score."""
    callback = trainer.checkpoint_callback
    return callback if isinstance(callback, ModelCheckpoint) and callback.monitor is not None else None


def _wrap_anew(strategy: Strategy) -> None:
    """Let DDP see what is trained now: its reducer knows only what was when it was made.

    FSDP2 looks at each parameter whenever it gathers it, and needs nothing.
    """
    if isinstance(strategy, DDPStrategy):
        wrapped = strategy.model
        assert isinstance(wrapped, DistributedDataParallel)
        # Of the old reducer: it would wait for gradients and reduce them a second time.
        wrapped._remove_autograd_hooks()  # type: ignore[no-untyped-call]
        strategy.model = wrapped.module
        strategy.configure_ddp()
