"""What collectives take: intervals by hand, and two ranks of which one comes late."""

from __future__ import annotations

import time

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent

from mmlab.callbacks.communication import Interval, Profiles, covered, exposed_share


def event(name: str, start: int, end: int, *, gpu: bool = False, annotation: bool = False) -> FunctionEvent:
    device = DeviceType.CUDA if gpu else DeviceType.CPU
    return FunctionEvent(0, name, 1, start, end, device_type=device, is_user_annotation=annotation)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 9))))
def test_length_of_a_union(parts: list[tuple[int, int]]) -> None:
    ticks = {tick for start, length in parts for tick in range(start, start + length)}
    assert covered(Interval(start, start + length) for start, length in parts) == len(ticks)


def test_only_what_no_computation_hides_counts() -> None:
    events = [
        event("aten::mm", 0, 40),
        event("gloo:all_reduce", 30, 70),  # 40 to 60 with nothing beside it
        event("autograd::engine::evaluate_function: X", 0, 100),
        event("aten::add_", 60, 100),
    ]
    assert exposed_share(events) == pytest.approx(0.2)


def test_kernels_of_a_gpu() -> None:
    events = [
        event("sm90_gemm", 0, 50, gpu=True),
        event("ncclDevKernel_AllReduce_Sum_f32_RING_LL", 40, 80, gpu=True),
        event("Optimizer.step#AdamW.step", 0, 100, gpu=True, annotation=True),
        event("multi_tensor_apply", 80, 100, gpu=True),
    ]
    assert exposed_share(events) == pytest.approx(0.3)
    assert exposed_share([]) == 0


def late_step() -> tuple[float, bool]:
    """One rank computes, the other waits for it in a collective."""
    first, profiles = (Profiles(torch.device("cpu")) for _ in range(2))
    first.begin()  # which takes long, once in a process
    first.end()
    dist.barrier()
    assert profiles.begin()
    matrix = torch.ones(200, 200)
    end = time.monotonic() + (0.5 if dist.get_rank() == 1 else 0)
    while time.monotonic() < end:
        matrix @ matrix
    dist.all_reduce(torch.ones(1))
    profiles.end()
    return profiles.share, profiles.begin()


def test_the_rank_that_waits_sees_it(ranks) -> None:
    (waiting, again), (late, _) = ranks(late_step)
    assert waiting > 0.8
    assert late < 0.3
    assert not again  # so soon
