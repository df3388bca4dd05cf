from __future__ import annotations

import pytest
import torch
from small_encoders import ENCODERS, LLAMA, T5, encoder
from torch import nn
from transformers import LlamaForCausalLM, T5ForConditionalGeneration

from mmlab.adaptation.trial import calls, can_run, first_tensor, run
from mmlab.models.blocks import find_blocks


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_takes_its_example(name: str) -> None:
    network = encoder(name).train()
    next(network.children()).eval()
    modes = [module.training for module in network.modules()]
    state, random = {key: value.clone() for key, value in network.state_dict().items()}, torch.get_rng_state()
    found = calls(network, [block.module for block in find_blocks(network)])
    assert [call.module for call in found] == [block.module for block in find_blocks(network)]
    assert not any(first_tensor(call.output).requires_grad for call in found)
    assert [module.training for module in network.modules()] == modes
    assert all(value.equal(state[key]) for key, value in network.state_dict().items())
    assert torch.get_rng_state().equal(random)
    assert not any(module._forward_hooks for module in network.modules())


def test_the_example_has_the_size_that_a_model_was_made_for() -> None:
    assert encoder("vit").example().data.shape == (1, 3, 32, 32)
    assert encoder("signal").example().data.shape == (1, 16, 3)
    assert encoder("bert").example().length.tolist() == [2]


def test_language_models_and_others() -> None:
    for model in (LlamaForCausalLM(LLAMA), T5ForConditionalGeneration(T5)):
        assert can_run(model)
        run(model)
    assert not can_run(nn.Linear(2, 2))
    assert not can_run(encoder("bert").backbone.encoder)
    assert not can_run(encoder("whisper").backbone), "its input embedding is a convolution"
