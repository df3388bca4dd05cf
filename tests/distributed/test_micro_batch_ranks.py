"""Parts of a batch on two gloo ranks: DDP and FSDP2 give the gradients of one process and one pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from mmlab import collectives
from mmlab.batch import NOBODY, Batch, Input, Modality
from mmlab.models.blocks import find_blocks
from mmlab.models.dual_encoder import DualEncoder, Tower
from mmlab.models.encoders.signal import SignalEncoder
from mmlab.objectives.contrastive import InfoNCE
from mmlab.parallel.compiling import compile_model
from mmlab.parallel.micro_batch import Sizes, part_size, run_in_parts
from mmlab.parallel.recompute import checkpoint_blocks

SAMPLES = 5
STEPS = 2


class Sounds(SignalEncoder):
    modality = Modality.AUDIO


class Step(nn.Module):
    """What a strategy wraps: model and loss."""

    def __init__(self, size: Sizes | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = DualEncoder(
            signal=Tower(SignalEncoder(3, dim=16, num_layers=3), dim=8),
            audio=Tower(Sounds(2, dim=16, num_layers=2), dim=8),
        )
        self.objective = InfoNCE()
        self.size = size

    def forward(self, batch: Batch) -> Tensor:
        output = self.model(batch) if self.size is None else run_in_parts(self.model, batch, self.size)
        return self.objective(output.signal, output.audio).value


def make_input(rows: list[int], channels: int, length: int) -> Input:
    owner = [number if count else NOBODY for number, count in enumerate(rows) for _ in range(max(count, 1))]
    generator = torch.Generator().manual_seed(channels)
    return Input(
        torch.randn(len(owner), length, channels, generator=generator),
        owner=torch.tensor(owner),
        present=torch.tensor([count > 0 for count in rows]),
        length=torch.full((len(owner),), 3),
    )


def global_batch(lengths: tuple[int, int] = (6, 6)) -> Batch:
    """Ten samples, with as many rows in both halves."""
    return Batch(
        keys=tuple(map(str, range(2 * SAMPLES))),
        place=torch.arange(2 * SAMPLES),
        valid=torch.ones(2 * SAMPLES, dtype=torch.bool),
        group=torch.arange(2 * SAMPLES),
        signal=make_input([1, 0, 1, 1, 1, 1, 1, 1, 1, 0], 3, lengths[0]),
        audio=make_input([2, 1, 1, 0, 1, 1, 1, 0, 1, 2], 2, lengths[1]),
    )


def own_batch() -> Batch:
    """This rank's half."""
    return global_batch().select(torch.arange(SAMPLES) + SAMPLES * collectives.rank())


def train(step: nn.Module, wrapped: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """The gradients after two steps."""
    optimizer = torch.optim.SGD(step.parameters(), lr=0.1)
    for number in range(STEPS):
        optimizer.zero_grad()
        wrapped(batch).backward()
        if number < STEPS - 1:
            optimizer.step()
            with torch.no_grad():  # an evaluation between two steps
                wrapped(batch)
    return {name: full(p.grad) for name, p in step.named_parameters() if p.grad is not None}


def full(value: Any) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value.clone()


def train_with_ddp(size: Sizes, settings: dict[str, bool]) -> dict[str, Tensor]:
    step = Step(size)
    return train(step, DistributedDataParallel(step, **settings), own_batch())


def train_with_fsdp(size: Sizes, share: float, root: str, compiled: bool = False) -> dict[str, Tensor]:
    step = Step(size)
    checkpoint_blocks(step.model, share)
    if compiled:
        compile_model(step.model, backend="aot_eager")
    mesh = init_device_mesh("cpu", (collectives.world_size(),))
    for block in find_blocks(step.model):
        fully_shard(block.module, mesh=mesh)
    if root == "step":
        fully_shard(step, mesh=mesh)
    else:
        fully_shard(step.model, mesh=mesh)
        # What stands outside has whole gradients on each rank.
        step.objective.log_scale.requires_grad_(False)
    return train(step, step, own_batch())


@pytest.fixture(scope="module")
def alone() -> dict[str, Tensor]:
    step = Step(None)
    return train(step, step, global_batch())


def compare(found: list[dict[str, Tensor]], expected: dict[str, Tensor]) -> None:
    for gradients in found:
        for name, value in gradients.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("settings", [{}, {"static_graph": True, "gradient_as_bucket_view": True}])
def test_ddp(ranks: Any, alone: dict[str, Tensor], settings: dict[str, bool]) -> None:
    found = ranks(train_with_ddp, 2, settings)
    assert found[0].keys() == alone.keys()
    compare(found, alone)


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("root", ["step", "model"])
def test_fsdp(ranks: Any, alone: dict[str, Tensor], share: float, root: str) -> None:
    found = ranks(train_with_fsdp, 2, share, root)
    if root == "step":
        assert found[0].keys() == alone.keys()
        compare(found, alone)
    else:
        whole = ranks(train_with_fsdp, SAMPLES, 0.0, root)
        compare(found, whole[0])


def compare_compiled(rank: int, meeting: str) -> None:
    """A rank of its own, without the tests' checks of shapes, which would be compiled too."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    plain = train_with_fsdp(2, 0.5, "step")
    compare([train_with_fsdp(2, 0.5, "step", compiled=True)], plain)
    assert not torch._dynamo.utils.counters["graph_break"]
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.timeout(900)  # a machine that others use, too
def test_fsdp_with_compiled_blocks(tmp_path: Path) -> None:
    multiprocessing.spawn(compare_compiled, (f"file://{tmp_path}/meeting",), nprocs=2)


def sizes_of_ranks() -> int:
    length = 6 if collectives.rank() == 0 else 9
    return part_size(global_batch((length, 4)), {6: 4, 9: 2, 20: 1})


def test_ranks_of_other_lengths_make_parts_of_one_size(ranks: Any) -> None:
    assert ranks(sizes_of_ranks) == [2, 2]
