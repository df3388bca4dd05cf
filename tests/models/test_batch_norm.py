"""Samples without a picture change nothing for the others, with batch normalisation in training too."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from mmlab.batch import NOBODY, Input
from mmlab.models.encoders.batch_norm import BATCH_NORMS, run_owned
from mmlab.models.encoders.convolution import ConvolutionEncoder
from mmlab.models.encoders.encoder import Encoder
from mmlab.models.encoders.image import ImageEncoder

ENCODERS: dict[str, Callable[[], Encoder]] = {
    "convolutions": ConvolutionEncoder,
    "timm": lambda: ImageEncoder("test_resnet", pretrained=False, freeze_batch_norm=False),
}


def pictures(owners: list[int]) -> Input:
    """A random picture for each sample, and a blank one for each row of nobody."""
    generator = torch.Generator().manual_seed(0)
    data = torch.randint(0, 256, (len(owners), 3, 64, 64), dtype=torch.uint8, generator=generator)
    owner = torch.tensor(owners)
    data[owner == NOBODY] = 0
    return Input(data, owner, torch.ones(len(owners), dtype=torch.bool))


def statistics(encoder: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in encoder.named_buffers() if "running" in name}


@pytest.mark.parametrize("name", ENCODERS)
def test_rows_of_nobody_change_nothing(name: str) -> None:
    torch.manual_seed(0)
    encoder = ENCODERS[name]().double().train()
    alone = copy.deepcopy(encoder)
    inputs = pictures([0, NOBODY, 1, 2, NOBODY, NOBODY])
    kept = inputs.owner != NOBODY
    tokens = encoder(inputs).tokens
    expected = alone(Input(inputs.data[kept], inputs.owner[kept], inputs.present)).tokens
    torch.testing.assert_close(tokens[kept], expected)
    for buffer, value in statistics(alone).items():
        torch.testing.assert_close(statistics(encoder)[buffer], value, msg=buffer)
    tokens[kept].square().sum().backward()
    expected.square().sum().backward()
    for one, other in zip(encoder.parameters(), alone.parameters(), strict=True):
        if other.grad is not None:
            torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("owners", [[NOBODY, NOBODY], [0, NOBODY]])
@pytest.mark.parametrize("name", ENCODERS)
def test_without_pictures_statistics_stay_and_gradients_are_there(name: str, owners: list[int]) -> None:
    """DDP waits for the gradient of each parameter on every rank."""
    encoder = ENCODERS[name]().train()
    before = statistics(encoder)
    tokens = encoder(pictures(owners)).tokens
    tokens.square().sum().backward()
    assert all(torch.equal(value, before[buffer]) for buffer, value in statistics(encoder).items())
    assert all(p.grad is not None for p in encoder.parameters() if p.requires_grad)
    assert all(part.training for part in encoder.modules() if isinstance(part, BATCH_NORMS))


def test_statistics_of_all_ranks_are_waited_for() -> None:
    """A rank without pictures takes part in them: else the others would wait for ever."""
    norm = nn.SyncBatchNorm(3).train()
    seen: list[bool] = []

    def run(data: torch.Tensor) -> torch.Tensor:
        seen.append(norm.training)
        return data

    data = torch.zeros(2, 3, 4, 4)
    run_owned(norm, run, data, torch.tensor([NOBODY, NOBODY]))
    assert seen == [True]
