"""Small pictures: tokens row by row with their places, whatever the size."""

from __future__ import annotations

import pytest
import torch

from mmlab.batch import Input
from mmlab.models.encoders.convolution import ConvolutionEncoder


def pictures(height: int, width: int, rows: int = 2) -> Input:
    generator = torch.Generator().manual_seed(0)
    data = torch.randint(0, 256, (rows, 3, height, width), dtype=torch.uint8, generator=generator)
    return Input(data, owner=torch.arange(rows), present=torch.ones(rows, dtype=torch.bool))


def test_tokens_know_their_places() -> None:
    encoder = ConvolutionEncoder().eval()
    tokens, mask = encoder(pictures(75, 43))
    assert tokens.shape == (2, 5 * 3, 26)
    assert mask.all()
    grid = tokens.unflatten(1, (5, 3))
    torch.testing.assert_close(grid[0, :, 1, -2], torch.tensor([-1, -0.5, 0, 0.5, 1]))
    torch.testing.assert_close(grid[0, 2, :, -1], torch.tensor([-1.0, 0, 1]))


def test_a_token_sees_its_place() -> None:
    encoder = ConvolutionEncoder((8, 8)).eval()
    given = pictures(32, 32, rows=1)
    before = encoder(given).tokens.unflatten(1, (8, 8))
    given.data[:, :, :4, :4] = 0
    changed = (encoder(given).tokens.unflatten(1, (8, 8)) != before).any(dim=3)[0]
    assert changed[0, 0]
    assert not changed[4:].any()
    assert not changed[:, 4:].any()


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="give one layer or more"):
        ConvolutionEncoder(())
    with pytest.raises(ValueError, match="an odd size"):
        ConvolutionEncoder(kernel_size=4)
    ConvolutionEncoder().try_out()
