"""What all tasks share: every step, the life of the metrics, the optimizer, what is trained."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torchmetrics import Metric

from mmlab.adaptation.policy import Policy
from mmlab.batch import Batch
from mmlab.models.depth import depths
from mmlab.models.network import FollowsSteps
from mmlab.objectives.loss import Loss, losses_by_source
from mmlab.optim import Optimization
from mmlab.parallel.execution import Execution
from mmlab.parallel.sharding import shard

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


class BaseTask(L.LightningModule, ABC):
    """A model under training: a leaf says what is minimised and what is measured, the rest is here.

    A leaf answers `losses`, `make_metrics` and `update_metrics`; it defines no step. It runs the model by
    calling itself, `self(batch)`, so that `execution` decides how.

    Args:
        model: Called with a :class:`mmlab.batch.Batch`. Its tensors have a row for each row of the batch.
        optimization: Optimizer and learning-rate schedule.
        adaptation: Which parameters are trained.
    """

    metrics: Metric
    """Of the evaluation that runs or ran last."""
    results: dict[str, float]
    """What the last evaluation gave, as it is logged but not rounded to float32."""
    step_losses: Mapping[str, Tensor]
    """What the training batch that ran last adds up to, detached, on the device."""
    execution: Execution = Execution()
    """How the model is run; set before training, by the command line or by hand."""

    def __init__(self, model: nn.Module, *, optimization: Optimization, adaptation: Policy) -> None:
        super().__init__()
        self.save_hyperparameters()
        # Asked now: Lightning drops what does not pickle, as sharded modules do not.
        self._by_hand = any(isinstance(value, nn.Module) for value in self.hparams.values())
        self.model = adaptation.apply(model)
        self.optimization = optimization
        self.adaptation = adaptation
        # A checkpoint holds what is trained; `on_load_checkpoint` is as strict about that.
        self.strict_loading = False
        self._prepared = False
        self._followers = [module for module in self.model.modules() if isinstance(module, FollowsSteps)]

    @property
    def seed(self) -> int:
        """That of the run (`seed_everything`)."""
        return int(os.environ.get("PL_GLOBAL_SEED", "0"))

    def seed_at(self, step: int, stream: int) -> int:
        """A seed that depends on the run's, the step and nothing else: a resumed run draws the same.

        Args:
            step: Of the training.
            stream: Which of several draws in a step: the rank, where ranks draw apart.
        """
        return ((self.seed * 1_000_003 + step) * 65_537 + stream) % 2**63

    def configure_model(self) -> None:
        """Bring the model into the form in which it runs; Lightning calls this again for every stage.

        Raises:
            ValueError: A precision of the trainer in which nothing trains well, or one that does not go with
                that of the frozen weights.
        """
        if self._prepared or self._trainer is None:  # without a trainer a checkpoint is only looked at
            return
        self._prepared = True
        precision = self.trainer.precision
        if precision not in PRECISIONS:
            raise ValueError(
                f"trainer.precision={precision}: weights that are trained are held in float32: set one of "
                f"{', '.join(PRECISIONS)}; adaptation.frozen_dtype makes those smaller that are not"
            )
        low = self.adaptation.frozen_dtype not in (None, "float32")
        if low and not precision.endswith("-mixed"):
            raise ValueError(
                f"adaptation.frozen_dtype={self.adaptation.frozen_dtype} with trainer.precision={precision}: "
                "set trainer.precision to bf16-mixed, or leave frozen_dtype out"
            )
        self.execution.prepare(self.model)
        if self.device_mesh is not None:
            shard(self, self.device_mesh, dtype=torch.bfloat16 if precision == "bf16-mixed" else None)

    def forward(self, batch: Batch) -> Any:
        """What the model makes of a batch, run as `execution` says."""
        return self.execution.run(self.model, batch)

    @abstractmethod
    def losses(self, batch: Batch) -> Mapping[str, Tensor | Loss]:
        """What is minimised: the sum of these. Each is logged under its name.

        A scalar will do. A :class:`~mmlab.objectives.loss.Loss` says besides what each sample adds to it, so
        that the loss of each source is known even where sources are mixed within a batch.
        """

    @abstractmethod
    def make_metrics(self) -> Metric:
        """A fresh metric whose `compute` returns `{name: number}`."""

    @abstractmethod
    def update_metrics(self, metrics: Metric, batch: Batch) -> None:
        """Add one evaluation batch to the metric; one that knows sources takes them from the batch."""

    def references_of(self, batch: Batch, sample: int) -> tuple[str, ...]:
        """What the answer to a sample is held against; empty where the run does not know."""
        return batch.references[sample] if batch.references else ()

    def on_fit_start(self) -> None:
        """Set the modes: Lightning leaves those it finds, and pretrained models come in evaluation mode."""
        self.train()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed dropout by the step, so that a resumed run draws what it would have drawn."""
        step = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
        seed = self.seed_at(step, self.global_rank)
        # torch.manual_seed would ask after every kind of device, at every step.
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.default_generators[self.device.index].manual_seed(seed)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Sum the losses of a batch."""
        losses = {
            name: loss if isinstance(loss, Loss) else Loss(loss) for name, loss in self.losses(batch).items()
        }
        penalties = self.adaptation.penalties(self.model)
        total = torch.stack([*(loss.value for loss in losses.values()), *penalties]).sum()
        self.step_losses = {
            **{name: loss.value.detach() for name, loss in losses.items()},
            **{f"penalty {number}": penalty.detach() for number, penalty in enumerate(penalties)},
        }
        if self._is_logged(batch_idx):
            # A rank's value is its part of the global loss: the mean over ranks is what is minimised.
            self.log("train/loss", total, prog_bar=True, batch_size=len(batch), sync_dist=True)
            if len(losses) > 1:
                parts = {f"train/loss/{name}": loss.value for name, loss in losses.items()}
                self.log_dict(parts, batch_size=len(batch), sync_dist=True)
            if batch.sources and self.loggers:
                self._log_sources(losses, batch)
        return total

    def _is_logged(self, batch_idx: int) -> bool:
        """Whether Lightning logs this step; at others ranks need not wait to learn each other's loss."""
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        ends_step = (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0
        return ends_step and every > 0 and (self.global_step + 1) % every == 0

    def _log_sources(self, losses: Mapping[str, Loss], batch: Batch) -> None:
        """Log `train/loss@source`."""
        values = {f"train/{name}": value for name, value in losses_by_source(losses, batch).items()}
        # Not self.log: it would repeat the last value of a source at steps that have none of its samples.
        for logger in self.loggers:
            logger.log_metrics(values, step=self.global_step)

    def on_validation_epoch_start(self) -> None:
        """Start to measure."""
        self.metrics = self.make_metrics()

    def on_test_epoch_start(self) -> None:
        """Start to measure."""
        self.metrics = self.make_metrics()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure a batch."""
        self.update_metrics(self.metrics, batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure a batch."""
        self.update_metrics(self.metrics, batch)

    def on_validation_epoch_end(self) -> None:
        """Log what was measured, under `val/`."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log what was measured, under `test/`."""
        self._log_metrics("test")

    def _log_metrics(self, stage: str) -> None:
        # Every rank has the same numbers: the metric has gathered what it needs.
        self.results = {f"{stage}/{name}": float(value) for name, value in self.metrics.compute().items()}
        self.log_dict(self.results, sync_dist=True)

    def predict_step(self, batch: Batch, batch_idx: int) -> Any:
        """What :meth:`predict` makes of a batch."""
        return self.predict(batch)

    def predict(self, batch: Batch) -> Any:
        """What `mmlab predict` keeps of a batch: the model's output, where a task says nothing else."""
        return self(batch)

    def optimizer_step(self, *arguments: Any, **named: Any) -> None:
        """Let the adaptation follow the training, while the gradients of the step still stand."""
        super().optimizer_step(*arguments, **named)
        total = int(self.trainer.estimated_stepping_batches)
        self.adaptation.after_step(self.model, self.global_step + 1, total)
        for module in self._followers:
            module.after_step()

    def train(self, mode: bool = True) -> BaseTask:
        """Put in training mode what is trained; frozen parts stay as they are in evaluation."""
        super().train(mode)
        self.adaptation.set_mode(self.model)
        return self

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Build the optimizer over what is trained, and its schedule over all steps of the fit."""
        trained = {
            name: parameter
            for name, parameter in self.named_parameters()
            if parameter.requires_grad or self.adaptation.trainable(name.removeprefix("model."))
        }
        self.optimization.check_parts(name for name, _ in self.named_parameters())
        optimizer = self.optimization.build_optimizer(trained.items(), depths=depths(self))
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise ValueError("the learning rate needs an end: set trainer.max_epochs or trainer.max_steps")
        schedule = self.optimization.build_schedule(optimizer, int(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is trained, and the digests of what it was trained beside."""
        if self._by_hand:
            # Built by hand, not from a config: the modules themselves would be pickled, frozen weights too.
            checkpoint.pop("hyper_parameters", None)
        fixed = set(self.model.state_dict()) - self.adaptation.kept(self.model)
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {
            name: value for name, value in state.items() if name.removeprefix("model.") not in fixed
        }
        checkpoint["adaptation"] = {"bases": dict(self.adaptation.bases), "stage": self.adaptation.stage}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that does not fit; go on at its stage.

        Raises:
            ValueError: It lacks weights or has others, or was trained beside other pretrained weights.
        """
        found = set(checkpoint["state_dict"])
        self.check_checkpoint(found, checkpoint.get("adaptation", {}).get("bases", {}))
        kept = {f"model.{name}" for name in self.adaptation.kept(self.model)}
        if any(name.startswith("model.") and name not in kept for name in found):
            # It brings frozen weights of its own, which no digest of what the config builds stands for.
            self.adaptation.checkpoint = "full"
        self.adaptation.open(self.model, checkpoint.get("adaptation", {}).get("stage", 0))

    def check_checkpoint(self, names: set[str], bases: Mapping[str, str]) -> None:
        """Raise ValueError unless a checkpoint with these weights continues this model.

        Args:
            names: Of its state.
            bases: Digests of the pretrained networks that it was trained beside.
        """
        own = set(self.state_dict())
        kept = {f"model.{name}" for name in self.adaptation.kept(self.model)}
        needed = {name for name in own if not name.startswith("model.")} | kept
        for kind, wrong in (("lacks", needed - names), ("has besides", names - own)):
            if wrong:
                some = ", ".join(sorted(wrong)[:3]) + (", ..." if len(wrong) > 3 else "")
                raise ValueError(
                    f"the checkpoint is of another model or adaptation than the config builds: it {kind} "
                    f"{len(wrong)} tensors ({some})"
                )
        for path, digest in self.adaptation.bases.items():
            if not own <= names and bases.get(path, digest) != digest:
                raise ValueError(
                    f"the checkpoint holds what was trained beside other weights of {path} "
                    f"({bases[path][:12]}, here {digest[:12]}): give {path} the same pretrained weights"
                )
