from __future__ import annotations

import copy
import warnings
from typing import Any

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import BertConfig, BertForSequenceClassification

from mmlab.adaptation.lora import LoRA
from mmlab.adaptation.rank_budget import budget

STEPS = 20
FIRST, LAST = 2, 10
"""What the shares of warm-up and settled part come to in that many steps."""


def classifier() -> Any:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    return BertForSequenceClassification(config).eval()


def batch(step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {
        "input_ids": torch.randint(0, 30, (4, 6), generator=generator),
        "labels": torch.randint(0, 2, (4,), generator=generator),
    }


def adapted() -> tuple[Any, LoRA]:
    method = LoRA(4, kind="adalora", targets=["*.query", "*.value"])
    return method.apply(classifier()).eval(), method


def train(network: Any, method: LoRA, steps: range) -> None:
    parameters = [p for name, p in network.named_parameters() if method.trainable(name, p)]
    optimizer = torch.optim.SGD(parameters, lr=0.5)
    for step in steps:
        loss = network(**batch(step)).loss + method.penalty(network)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.after_step(network, step, STEPS)


def ranks(network: nn.Module) -> list[int]:
    named = network.named_parameters()
    return [int((p.detach() != 0).sum()) for name, p in named if ".lora_E." in name]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft 0.21 reads it
def test_a_run_goes_as_with_peft() -> None:
    config = peft.AdaLoraConfig(
        init_r=6, target_r=4, tinit=FIRST, tfinal=LAST, total_step=STEPS, lora_alpha=16, lora_dropout=0.0,
        target_modules=["query", "value"],
    )  # fmt: skip
    theirs: Any = peft.get_peft_model(classifier(), config).eval()
    network, method = adapted()
    own = dict(network.named_parameters())
    start = {name.removeprefix("base_model.model."): p for name, p in theirs.named_parameters()}
    for name in own:
        own[name].data.copy_(start[name].data)
    optimizer = torch.optim.SGD([p for p in theirs.parameters() if p.requires_grad], lr=0.5)
    for step in range(1, STEPS + 1):
        train(network, method, range(step, step + 1))
        loss = theirs.base_model(**batch(step)).loss  # with the penalty
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        theirs.base_model.update_and_allocate(step)
        for name in own:
            torch.testing.assert_close(own[name], start[name], rtol=1e-4, atol=1e-6, msg=f"{name}, {step}")
    assert sum(ranks(network)) == 4 * 4
    assert len(set(ranks(network))) > 1, "every layer has the same rank: nothing was shared out"


def test_a_resumed_run_shares_out_as_the_uninterrupted_one() -> None:
    whole, method = adapted()
    train(whole, method, range(1, STEPS + 1))
    for stop in (FIRST, 6, 15):
        first, method = adapted()
        train(first, method, range(1, stop + 1))
        state = copy.deepcopy(first.state_dict())
        second, method = adapted()
        second.load_state_dict(state)
        train(second, method, range(stop + 1, STEPS + 1))
        for name, value in whole.state_dict().items():
            torch.testing.assert_close(second.state_dict()[name], value, rtol=0, atol=0)


def test_gradients_of_a_skipped_step_leave_no_trace() -> None:
    network, method = adapted()
    for p in network.parameters():
        p.grad = torch.full_like(p, torch.inf) if p.requires_grad else None
    method.after_step(network, 1, STEPS)
    assert all(value.isfinite().all() for name, value in network.named_buffers() if "importance" in name)


def test_nothing_happens_before_the_first_step() -> None:
    network, method = adapted()
    before = copy.deepcopy(network.state_dict())
    method.after_step(network, 0, STEPS)
    for name, value in network.state_dict().items():
        assert value.equal(before[name])


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 300), st.integers(1, 50), st.integers(0, 50))
def test_the_budget_falls_from_start_to_end(total: int, end: int, more: int) -> None:
    found = [budget(step, start=end + more, end=end, total_steps=total) for step in range(total + 1)]
    assert found == sorted(found, reverse=True)
    assert found[0] in (end + more, end)
    assert found[-1] == end


class Stack(nn.Module):
    """Two layers, the size of the features not a multiple of the ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(7, 7), nn.Linear(7, 7)])

    def forward(self, rows: Tensor) -> Tensor:
        for layer in self.layers:
            rows = torch.tanh(layer(rows))
        return rows


def run_stack(sharded: bool) -> dict[str, Tensor]:
    """Train on the same rows on every rank: the mean of the gradients is that of one process."""
    torch.manual_seed(0)
    method = LoRA(2, kind="adalora")
    network: Any = method.apply(Stack())
    if sharded:
        mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
        for part in (*network.layers, network):
            fully_shard(part, mesh=mesh)
    rows, target = torch.randn(8, 7), torch.randn(8, 7)
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        loss = (network(rows) - target).square().mean()
        penalty = method.penalty(network)
        assert penalty is not None
        (loss + penalty).backward()
        optimizer.step()
        method.after_step(network, step, STEPS)
    return {
        name: value.full_tensor() if hasattr(value, "full_tensor") else value.clone()
        for name, value in network.state_dict().items()
    }


def test_sharded_as_in_one_process(ranks: Any) -> None:
    alone = run_stack(False)
    assert sum(int((value != 0).sum()) for name, value in alone.items() if ".lora_E." in name) == 4
    for state in ranks(run_stack, True):
        for name, value in alone.items():
            torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-6)


def test_no_warning_is_left_to_the_user() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapted()
