from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmlab.batch import NOBODY, Input
from mmlab.models.encoders.signal import SignalEncoder, sinusoids


def arrays(lengths: list[int], fill: float = 0.0) -> Input:
    generator = torch.Generator().manual_seed(0)
    length = torch.tensor(lengths)
    data = torch.randn(len(lengths), max(lengths), 3, generator=generator)
    data[torch.arange(max(lengths)) >= length[:, None]] = fill
    return Input(data, torch.arange(len(lengths)), torch.ones(len(lengths), dtype=torch.bool), length)


@pytest.mark.parametrize("training", [True, False])
@settings(max_examples=12, deadline=None)
@given(lengths=st.lists(st.integers(1, 30), min_size=2, max_size=4), stride=st.integers(1, 4))
def test_a_row_gives_the_same_alone_and_in_a_batch(training: bool, lengths: list[int], stride: int) -> None:
    torch.manual_seed(0)
    encoder = SignalEncoder(3, dim=16, num_heads=2, stride=stride).train(training)
    inputs = arrays(lengths, fill=9.0)
    with torch.no_grad():
        tokens, mask = encoder(inputs)
        for row, length in enumerate(lengths):
            alone = encoder(
                Input(inputs.data[row : row + 1, :length], inputs.owner[:1], inputs.present[:1],
                      inputs.length[row : row + 1])
            )  # fmt: skip
            assert alone.mask.sum() == mask[row].sum() == -(-length // stride)
            torch.testing.assert_close(tokens[row][mask[row]], alone.tokens[0], rtol=0, atol=1e-5)


def test_a_row_of_nobody_gives_no_nan() -> None:
    encoder = SignalEncoder(3, dim=16)
    one = torch.ones(1, dtype=torch.int64)
    tokens = encoder(Input(torch.zeros(1, 4, 3), NOBODY * one, torch.tensor([False]), one)).tokens
    tokens.square().sum().backward()
    assert tokens.isfinite().all()
    assert all(p.grad.isfinite().all() for p in encoder.parameters())


def test_order_in_time_matters() -> None:
    torch.manual_seed(0)
    encoder = SignalEncoder(3, dim=16, kernel_size=1).eval()
    inputs = arrays([6])
    turned = Input(inputs.data.flip(1), inputs.owner, inputs.present, inputs.length)
    assert not torch.allclose(encoder(inputs).tokens.mean(1), encoder(turned).tokens.mean(1), atol=1e-4)


def test_sinusoids_against_the_formula() -> None:
    table = sinusoids(5, 8)
    assert table[3, 1].item() == pytest.approx(math.sin(3 * 10_000 ** (-1 / 3)), abs=1e-6)
    assert table[3, 5].item() == pytest.approx(math.cos(3 * 10_000 ** (-1 / 3)), abs=1e-6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"dim": 30}, "dim=30 must be even and a multiple of num_heads=4"),
     ({"kernel_size": 4}, "kernel_size=4 must be odd: use 5")],
)  # fmt: skip
def test_sizes_that_do_not_fit(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SignalEncoder(3, **wrong)
