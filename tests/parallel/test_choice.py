"""The choice of a strategy: what a step holds, measured without running it, and what fits into a device."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from mmlab.adaptation.policy import MethodName, Policy
from mmlab.batch import Batch, Input
from mmlab.models.dual_encoder import DualEncoder, Tower
from mmlab.models.encoders.image import ImageEncoder
from mmlab.models.encoders.signal import SignalEncoder
from mmlab.objectives.contrastive import ContrastiveObjective, InfoNCE, SigmoidLoss
from mmlab.optim import Optimization
from mmlab.parallel.activations import Activations, activation_bytes
from mmlab.parallel.choice import Choice, Held, choose, choose_strategy, device_memory, held
from mmlab.parallel.execution import Execution
from mmlab.parallel.recompute import checkpoint_blocks
from mmlab.tasks.retrieval import RetrievalTask

pytestmark = pytest.mark.filterwarnings("ignore:.*is already saved during checkpointing")

GB = 10**9
SMALL = Held(weights=4 * GB, trained=4 * GB, states=8 * GB, around=GB, block=GB // 4)
ACTIVATIONS = Activations(around=2 * GB, blocks=(GB,) * 10)


def make_task(
    towers: MethodName = "full",
    objective: Callable[[], ContrastiveObjective] = InfoNCE,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
) -> RetrievalTask:
    torch.manual_seed(0)
    return RetrievalTask(
        DualEncoder(
            image=Tower(ImageEncoder("test_vit", pretrained=False, image_size=64), dim=16),
            signal=Tower(SignalEncoder(3, dim=32, num_layers=3, dropout=0.1), dim=16),
        ),
        objective=objective(),
        optimization=Optimization(optimizer),
        adaptation=Policy(towers),
    )


def make_batch(size: int = 16) -> Batch:
    def rows(data: torch.Tensor, length: torch.Tensor | None = None) -> Input:
        return Input(data, torch.arange(size), torch.ones(size, dtype=torch.bool), length)

    return Batch(
        keys=tuple(map(str, range(size))),
        place=torch.arange(size),
        valid=torch.ones(size, dtype=torch.bool),
        group=torch.arange(size),
        image=rows(torch.randint(0, 256, (size, 3, 64, 64), dtype=torch.uint8)),
        signal=rows(torch.randn(size, 40, 3), torch.full((size,), 40)),
    )


def really_held(task: RetrievalTask, batch: Batch) -> int:
    """Bytes that the forward pass has allocated and not freed, as the allocator reports them."""
    task.train()
    task.losses(batch)  # what is made once and kept
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        losses = task.losses(batch)
    assert losses
    return sum(event.self_cpu_memory_usage for event in profiler.key_averages())


@pytest.mark.parametrize("towers", ["full", "frozen"])
@pytest.mark.parametrize("objective", [InfoNCE, SigmoidLoss])
def test_what_is_held_is_known_without_running(
    towers: MethodName, objective: Callable[[], ContrastiveObjective]
) -> None:
    task, batch = make_task(towers, objective), make_batch()
    found = activation_bytes(task, batch).held()
    assert found == pytest.approx(really_held(task, batch), rel=0.2, abs=20_000)


def test_what_is_held_where_blocks_are_computed_again() -> None:
    task, batch = make_task(), make_batch()
    found = activation_bytes(task, batch)
    assert len(found.blocks) == 9
    checkpoint_blocks(task.model, 1.0)
    # The one block that is computed again at a time comes in the backward pass.
    assert found.around == pytest.approx(really_held(task, batch), rel=0.2)
    assert found.around < found.held(1.0) < found.held(0.5) < found.held()


def test_measuring_leaves_no_trace() -> None:
    task, batch = make_task(), make_batch()
    task.eval()
    before = {name: value.clone() for name, value in task.state_dict().items()}
    numbers = torch.get_rng_state()
    first = activation_bytes(task, batch)
    assert activation_bytes(task, batch) == first
    assert torch.equal(torch.get_rng_state(), numbers)
    assert not task.training
    assert not any(parameter.grad is not None for parameter in task.parameters())
    for name, value in task.state_dict().items():
        assert type(value) is torch.Tensor
        assert torch.equal(value, before[name]), name


def test_activations_grow_with_the_batch_and_shrink_with_parts() -> None:
    task = make_task()
    small, large = (activation_bytes(task, make_batch(size)).held() for size in (8, 16))
    assert large == pytest.approx(2 * small, rel=0.1)
    task.execution = Execution(micro_batch=8)
    assert activation_bytes(task, make_batch(16)).held() == small
    assert task.execution == Execution(micro_batch=8)


def test_autocast_halves_much_of_it() -> None:
    task, batch = make_task(), make_batch()
    low = activation_bytes(task, batch, dtype=torch.bfloat16).held()
    assert 0.4 < low / activation_bytes(task, batch).held() < 0.9


@pytest.mark.parametrize(
    ("optimizer", "states"),
    [(torch.optim.AdamW, 2), (torch.optim.SGD, 0), (partial(torch.optim.SGD, momentum=0.9), 1)],
)
def test_what_is_trained_has_gradients_and_states(
    optimizer: Callable[..., torch.optim.Optimizer], states: int
) -> None:
    task = make_task("frozen", optimizer=optimizer)
    found = held(task)
    trained = sum(p.nbytes for p in task.parameters() if p.requires_grad)
    assert 0 < trained < found.weights / 2
    assert found.trained == trained
    assert found.states == states * trained
    assert found.weights == sum(tensor.nbytes for tensor in [*task.parameters(), *task.buffers()])


@pytest.mark.parametrize(
    ("memory", "devices", "wanted"),
    [
        (40, 8, ("ddp", 0.0)),
        (20, 8, ("fsdp2", 0.0)),
        (15, 8, ("fsdp2", 0.5)),
        (11, 8, ("fsdp2", 1.0)),
        (8, 8, ("none", 0.0)),
        (15, 2, ("none", 0.0)),
    ],
)
def test_as_little_as_possible_is_recomputed_and_sharded(
    memory: int, devices: int, wanted: tuple[str, float]
) -> None:
    choice = choose(SMALL, ACTIVATIONS, devices=devices, memory=memory * GB)
    assert (choice.strategy, choice.checkpointing) == wanted


def test_copies_are_taken_where_only_activations_are_large() -> None:
    tiny = Held(weights=GB // 4, trained=GB // 4, states=GB // 2, around=GB // 8, block=GB // 80)
    choice = choose(tiny, ACTIVATIONS, devices=8, memory=13 * GB)
    assert (choice.strategy, choice.checkpointing) == ("ddp", 0.25)


def test_the_reason_has_the_numbers() -> None:
    assert choose(SMALL, ACTIVATIONS, devices=8, memory=11 * GB).reason == (
        "fsdp2: weights, gradients and optimizer states take 16.0 GB, activations about 12.0 GB, sharded "
        "over 8 devices the former take 4.8 GB, with 100% of the blocks computed again the latter take "
        "3.0 GB; a device has 11.0 GB"
    )
    none = choose(SMALL, ACTIVATIONS, devices=2, memory=8 * GB)
    assert none.reason.startswith("nothing fits: sharded over 2 devices")
    assert "about 13.8 GB, and a device has 8.0 GB: lower data.batch_size" in none.reason


@given(st.integers(1, 60), st.integers(1, 64), st.integers(0, 30), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_more_memory_never_needs_more(memory: int, devices: int, around: int, blocks: int) -> None:
    def rank(choice: Choice) -> tuple[bool, float, bool]:
        return choice.strategy == "none", choice.checkpointing, choice.strategy == "fsdp2"

    activations = Activations(around * GB, (GB,) * blocks)
    less, more = (
        choose(SMALL, activations, devices=devices, memory=size * GB) for size in (memory, memory + 1)
    )
    assert rank(more) <= rank(less)


def test_a_task_is_judged_whole() -> None:
    task, batch = make_task(), make_batch()
    choice = choose_strategy(task, batch, devices=2, memory=device_memory(torch.device("cpu"), 2))
    assert choice.strategy == "ddp"
    assert choose_strategy(task, batch, devices=2, memory=1000).strategy == "none"
