"""How Lightning runs a task on several devices: copies of the model (DDP), or shards of it (FSDP2)."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch.distributed as dist
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from mmlab.parallel.checkpoint_files import CheckpointFiles
from mmlab.parallel.stored import WEIGHTS, Stored, open_checkpoint
from mmlab.tasks.base import BaseTask

TIMEOUT = timedelta(minutes=30)


class DistributedDataParallel(DDPStrategy):
    """Every device holds the whole model; gradients are averaged while the backward pass runs.

    Gradients lie in the buffers that are sent, which saves a copy of them. Which parameters a step uses, and
    how often, is looked at once: in a task it is the same in every step, whatever a batch lacks.

    Args:
        static_graph: Set it to False for a task whose losses use other parameters from step to step. Does
            nothing where gradients are accumulated over batches: torch cannot do both.
        process_group_backend: `nccl` on GPUs and `gloo` on CPUs unless set.
        timeout: How long a rank waits for the others.
    """

    def __init__(
        self,
        static_graph: bool = True,
        process_group_backend: str | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> None:
        super().__init__(
            checkpoint_io=CheckpointFiles(),
            process_group_backend=process_group_backend,
            timeout=timeout,
            gradient_as_bucket_view=True,
        )
        self.static_graph = static_graph

    def configure_ddp(self) -> None:
        """Wrap the task."""
        assert self.lightning_module is not None
        accumulates = self.lightning_module.trainer.accumulate_grad_batches > 1
        self._ddp_kwargs["static_graph"] = self.static_graph and not accumulates
        super().configure_ddp()

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read on every rank the checkpoint that the first one names, once the first one has written it."""
        if isinstance(self.checkpoint_io, CheckpointFiles):
            self.checkpoint_io.wait()
        return super().load_checkpoint(self.broadcast(checkpoint_path), weights_only)


class FullySharded(ModelParallelStrategy):
    """Parameters, gradients and optimizer states are spread over devices (FSDP2), or over those of a replica.

    Checkpoints are folders to which each rank writes its part, and go on with any number of ranks, devices
    and replicas; `mmlab runs consolidate` makes one file of one. Checkpoints of one file can be read, too.

    Args:
        replicas: How often the sharded model is held (HSDP): with as many replicas as nodes, weights are
            gathered within a node, and only gradients travel between nodes. Must divide the number of ranks.
        save_distributed_checkpoint: False gathers checkpoints on the first rank and writes one file.
        process_group_backend: `nccl` on GPUs and `gloo` on CPUs unless set.
        timeout: How long a rank waits for the others.

    Raises:
        ValueError: `replicas` is below 1; at the start, where it does not divide the ranks.
    """

    def __init__(
        self,
        replicas: int = 1,
        save_distributed_checkpoint: bool = True,
        process_group_backend: str | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> None:
        if replicas < 1:
            raise ValueError(f"replicas={replicas}: it must be at least 1")
        super().__init__(
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )
        self.replicas = replicas
        self._files = CheckpointFiles()
        self.checkpoint_io = self._files

    @property
    def task(self) -> BaseTask:
        """What is trained."""
        assert isinstance(self.lightning_module, BaseTask), "only tasks know what a checkpoint keeps"
        return self.lightning_module

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Every rank reads its own samples, whether it is another replica or another shard."""
        return {"num_replicas": self.world_size, "rank": self.global_rank}

    def setup_environment(self) -> None:
        """Join the other ranks and lay them out as replicas of shards."""
        ranks = self.num_nodes * self.num_processes
        if ranks % self.replicas != 0:
            raise ValueError(
                f"replicas={self.replicas} on {ranks} ranks: every replica needs as many; set a number that "
                f"divides {ranks}"
            )
        self._setup_distributed()
        if self._device_mesh is None:  # each stage comes here
            axes = {"replicate": self.replicas, "shard": ranks // self.replicas}
            if self.replicas == 1:
                del axes["replicate"]
            self._device_mesh = init_device_mesh(
                self.root_device.type, tuple(axes.values()), mesh_dim_names=tuple(axes)
            )
        self.task._device_mesh = self._device_mesh

    def setup(self, trainer: pl.Trainer) -> None:
        """Prepare the model and the optimizers."""
        # FSDP keeps the tensors into which it gathers weights, and those that are made in inference mode can
        # never be trained on: training would stop after the first validation.
        validation = trainer.fit_loop.epoch_loop.val_loop
        for loop in (validation, trainer.validate_loop, trainer.test_loop, trainer.predict_loop):
            loop.inference_mode = False
        super().setup(trainer)

    def on_validation_start(self) -> None:
        """Measure the same model on every rank."""
        self._share_statistics()

    def _share_statistics(self) -> None:
        """Take the running statistics of the first rank, as DDP does; nobody else brings them together."""
        for module in self.task.modules():
            if getattr(module, "track_running_stats", False):
                for buffer in module.buffers(recurse=False):
                    dist.broadcast(buffer, 0)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The state of the task, each rank its shards; nothing is copied."""
        self._share_statistics()
        return self.task.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state of an optimizer, each rank its shards."""
        inner = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        return inner.state_dict()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint; every rank must call this."""
        path = Path(self.broadcast(filepath))
        if self._save_distributed_checkpoint:
            self._files.save_folder(checkpoint, path)
            return
        # One tensor at a time is whole, and only the first rank keeps it.
        whole = tree_map_only(DTensor, self._on_first_rank, checkpoint)
        super(ModelParallelStrategy, self).save_checkpoint(whole, path, storage_options)

    def _on_first_rank(self, tensor: DTensor) -> Tensor | None:
        whole = tensor.full_tensor()
        return whole.cpu() if self.is_global_zero else None

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read weights and, in training, optimizer states into the shards; returns the rest.

        Raises:
            ValueError: The checkpoint is none, or of another model, adaptation or base; nothing is changed
                then.
        """
        self._files.wait()
        stored = open_checkpoint(Path(self.broadcast(checkpoint_path)))
        saved = stored.rest.get("adaptation", {})
        self.task.check_checkpoint(stored.weights, saved.get("bases", {}))
        own = self.task.state_dict()
        weights = {name: own[name] for name in stored.weights}
        _check_sizes(stored, weights)
        # Before optimizers are restored: what is trained later has state only after its stage has opened.
        self.task.adaptation.open(self.task.model, saved.get("stage", 0))
        stored.read({f"{WEIGHTS}{name}": tensor for name, tensor in weights.items()})
        for number, optimizer in enumerate(self.optimizers if "optimizer_states" in stored.rest else []):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            optimizer.load_state_dict(stored.optimizer_state(number, parameters))
        rest = {key: value for key, value in stored.rest.items() if key != "optimizer_states"}
        return {**rest, "state_dict": weights}


def _check_sizes(stored: Stored, weights: dict[str, Tensor]) -> None:
    """Raise ValueError where a stored weight has another size than the model's."""
    for name, tensor in weights.items():
        size = stored.shapes[f"{WEIGHTS}{name}"].size
        if size != tuple(tensor.shape):
            raise ValueError(
                f"the checkpoint is of another model than the config builds: {name} has size {size} there, "
                f"{tuple(tensor.shape)} here"
            )
