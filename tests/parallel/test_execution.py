"""Execution: what it refuses, what it changes in a model, when it runs parts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from test_micro_batch import Network, make_batch
from torch import nn

from mmlab.models.blocks import find_blocks
from mmlab.models.encoders.signal import SignalEncoder
from mmlab.parallel.execution import Execution
from mmlab.parallel.recompute import Recomputed


@pytest.fixture
def precision() -> Iterator[None]:
    """Put torch's own settings back."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = convolutions


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"micro_batch": 0}, "micro_batch=0: it must be at least 1 sample"),
        ({"micro_batch": {}}, "micro_batch={}"),
        ({"micro_batch": {128: 4, 256: 0}}, "micro_batch="),
        ({"checkpointing": 1.5}, r"checkpointing=1\.5: it is a share"),
        ({"checkpointing": -0.1}, "checkpointing="),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Execution(**settings)


def test_only_training_with_gradients_runs_parts() -> None:
    model, batch = Network(), make_batch([1] * 6)
    execution = Execution(micro_batch=2)
    for training, gradients, calls in ((True, True, 3), (False, True, 1), (True, False, 1)):
        model.train(training)
        model.calls = 0
        with torch.set_grad_enabled(gradients):
            execution.run(model, batch)
        assert model.calls == calls
    model.train()
    model.calls = 0
    Execution().run(model, batch)
    assert model.calls == 1


def test_prepare_changes_what_was_asked_for(precision: None) -> None:
    model = nn.ModuleList([SignalEncoder(3, dim=16, num_layers=2)])
    names = list(model.state_dict())
    Execution().prepare(model)
    blocks = [block.module for block in find_blocks(model[0])]
    assert torch.get_float32_matmul_precision() == "highest"
    assert not any("forward" in vars(block) or block._compiled_call_impl for block in blocks)
    Execution(checkpointing=1.0, compile=True, tf32=True).prepare(model)
    assert torch.get_float32_matmul_precision() == "high"
    assert torch.backends.cudnn.allow_tf32
    assert all(isinstance(block.forward, Recomputed) and block._compiled_call_impl for block in blocks)
    assert list(model.state_dict()) == names
