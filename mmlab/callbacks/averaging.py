"""Averages the weights over the training, and measures and keeps the average."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from mmlab import collectives
from mmlab.batch import Batch
from mmlab.tasks.base import BaseTask


def decay_at(update: int, decay: float) -> float:
    """The share of the old average in the new one: (1 + t) / (10 + t) until that reaches `decay`.

    So that the first weights, which are random, are soon forgotten.

    Args:
        update: t, from 0.
        decay: In [0, 1).
    """
    return min(decay, (1 + update) / (10 + update))


class WeightAveraging(Callback):
    """Exponential moving average of what is trained (Polyak and Juditsky 1992; Tarvainen and Valpola 2017).

    Validation, test and the weights in checkpoints are the average; training goes on with the raw weights,
    which checkpoints hold in the state of this callback, so that a resumed run goes on exactly. A checkpoint
    that was made without it starts an average at its weights.

    Only trained parameters are held a second time, in float32 or better, by every rank its shards. Running
    statistics of batch normalisation stay those of the raw weights. (Lightning's own callback holds a copy of
    the whole task, frozen weights too, and cannot shard it.)
    """

    def __init__(self, decay: float = 0.999) -> None:
        """Say how long the average looks back.

        Args:
            decay: About 1 / (1 - decay) steps; reached slowly, see :func:`decay_at`.

        Raises:
            ValueError: `decay` is out of its range.
        """
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay}: it is the share of the old average, from 0 to below 1")
        self.decay = decay
        self._reset()

    def _reset(self) -> None:
        self._updates = 0
        self._step = 0
        self._parameters: dict[str, nn.Parameter] = {}
        self._average: list[Tensor] = []
        self._raw: list[Tensor] | None = None
        """Raw weights while the model holds the average."""
        self._loaded: dict[str, Any] | None = None
        self._training = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Start anew.

        Raises:
            ValueError: Checkpoints are to hold weights only, and so without the average.
        """
        self._reset()
        self._training = stage == "fit"
        callbacks = trainer.checkpoint_callbacks if self._training else []
        if any(
            isinstance(callback, ModelCheckpoint) and callback.save_weights_only for callback in callbacks
        ):
            raise ValueError(
                "weight averaging with checkpoint.save_weights_only=true would save the raw weights: leave "
                "save_weights_only out"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the weights, or what a checkpoint holds, as the first average."""
        assert isinstance(pl_module, BaseTask)
        trained = pl_module.adaptation.trainable
        self._parameters = {
            name: parameter
            for name, parameter in pl_module.named_parameters()
            if parameter.requires_grad or trained(name.removeprefix("model."))
        }
        self._average = [
            tensor.to(torch.promote_types(tensor.dtype, torch.float32), copy=True) for tensor in self._local()
        ]
        self._step = trainer.global_step
        if self._loaded is not None:
            self._restore(self._loaded)
            self._loaded = None

    def _restore(self, state: dict[str, Any]) -> None:
        """Take up the raw weights and, where the model cannot hold it exactly, the average."""
        self._updates = state["updates"]
        for number, (name, parameter) in enumerate(self._parameters.items()):
            _plain(parameter).copy_(_part(state["raw"][name], parameter))
            if name in state["average"]:
                self._average[number].copy_(_part(state["average"][name], parameter))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Move the average towards the weights, after each optimizer step."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        weights = [w.to(a.dtype) for w, a in zip(self._local(), self._average, strict=True)]
        torch._foreach_lerp_(self._average, weights, 1 - decay_at(self._updates, self.decay))
        self._updates += 1

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure the average."""
        if self._average:
            self._raw = [tensor.clone() for tensor in self._local()]
            self._write(pl_module, self._average)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Go on with the raw weights."""
        if self._raw is not None:
            self._write(pl_module, self._raw)
            self._raw = None

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the average in the model."""
        self._raw = [tensor.clone() for tensor in self._local()]
        self._write(pl_module, self._average)

    def _write(self, module: nn.Module, values: list[Tensor]) -> None:
        """Put weights into the model."""
        for part in module.modules():
            if isinstance(part, FSDPModule):
                part.reshard()  # what is gathered still would not change
        torch._foreach_copy_(self._local(), values)

    def _local(self) -> list[Tensor]:
        """What this rank holds of the parameters."""
        return [_plain(parameter) for parameter in self._parameters.values()]

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the average as the weights."""
        for (name, parameter), average in zip(self._parameters.items(), self._average, strict=True):
            checkpoint["state_dict"][name] = _spread(average.to(parameter.dtype), parameter)

    def state_dict(self) -> dict[str, Any]:
        """The raw weights, and the average where the model's type cannot hold it; every rank calls this."""
        if not self._average:
            return {}
        raw = self._local() if self._raw is None else self._raw
        state: dict[str, Any] = {"updates": self._updates, "raw": {}, "average": {}}
        for (name, parameter), own, average in zip(self._parameters.items(), raw, self._average, strict=True):
            state["raw"][name] = _whole(own, parameter)
            if average.dtype != parameter.dtype:
                state["average"][name] = _whole(average, parameter)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until training starts; evaluation needs none of it."""
        if self._training:
            self._loaded = state_dict


def _plain(parameter: nn.Parameter) -> Tensor:
    """What this rank holds of a parameter; writing to it changes the parameter."""
    tensor = parameter.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _spread(own: Tensor, parameter: nn.Parameter) -> Tensor:
    """What the ranks hold, as a tensor that is sharded as the parameter is."""
    if not isinstance(parameter, DTensor):
        return own
    return DTensor.from_local(
        own, parameter.device_mesh, parameter.placements, run_check=False, shape=parameter.shape,
        stride=parameter.stride(),
    )  # fmt: skip


def _whole(own: Tensor, parameter: nn.Parameter) -> Tensor | None:
    """What the ranks hold, in one piece; of a sharded one only the first rank, which saves it, keeps that."""
    tensor = _spread(own, parameter)
    if not isinstance(tensor, DTensor):
        return tensor
    whole = tensor.full_tensor()
    return whole.cpu() if collectives.rank() == 0 else None


def _part(whole: Tensor, parameter: nn.Parameter) -> Tensor:
    """This rank's part of a whole."""
    if not isinstance(parameter, DTensor):
        return whole
    # Every rank has read the whole: no rank needs to send anything.
    whole = whole.to(parameter.device)
    return distribute_tensor(
        whole, parameter.device_mesh, parameter.placements, src_data_rank=None
    ).to_local()
