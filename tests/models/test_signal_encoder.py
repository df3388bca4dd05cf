from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mmlab.batch import NOBODY, Input
from mmlab.models.encoders.signal import FeatureEncoder, SignalEncoder, sinusoids
from mmlab.models.encoders.transformer_layer import TransformerLayer


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


@pytest.mark.parametrize("kind", [SignalEncoder, FeatureEncoder])
@pytest.mark.parametrize("rows", [2, 0])
def test_arrays_of_another_width(kind: type[SignalEncoder | FeatureEncoder], rows: int) -> None:
    data = torch.zeros(rows, 6, 3)
    none = torch.zeros(rows, dtype=torch.int64)
    inputs = Input(data, owner=none, present=none.bool(), length=none + 6)
    assert kind(3, dim=16)(inputs).tokens.shape == (rows, 6, 16)
    message = rf"^arrays of audio have 3 channels, but {kind.__name__} is made for 7: .*\(data\.audio\)"
    with pytest.raises(ValueError, match=message):
        kind(7, dim=16, modality="audio")(inputs)


@pytest.mark.parametrize("masked", [False, True])
def test_a_layer_computes_what_that_of_torch_does(masked: bool) -> None:
    torch.manual_seed(0)
    own = TransformerLayer(16, num_heads=4, hidden=32).double()
    reference = nn.TransformerEncoderLayer(
        16, 4, 32, dropout=0.0, activation="gelu", batch_first=True, norm_first=True, dtype=torch.float64
    )
    for parameter in reference.parameters():
        nn.init.normal_(parameter)
    weights = dict(reference.named_parameters())
    packed = [weights[f"self_attn.in_proj_{kind}"].chunk(3) for kind in ("weight", "bias")]
    copied = {
        f"{name}.{kind}": part
        for kind, parts in zip(("weight", "bias"), packed, strict=True)
        for name, part in zip(("query", "key", "value"), parts, strict=True)
    }
    names = {
        "out": "self_attn.out_proj", "widen": "linear1", "narrow": "linear2", "attention_norm": "norm1",
        "feedforward_norm": "norm2",
    }  # fmt: skip
    for name, other in names.items():
        copied |= {f"{name}.{kind}": weights[f"{other}.{kind}"] for kind in ("weight", "bias")}
    own.load_state_dict(copied)
    tokens = torch.randn(3, 6, 16, dtype=torch.float64, requires_grad=True)
    seen = (
        torch.arange(6) < torch.tensor([6, 2, 4])[:, None] if masked else torch.ones(3, 6, dtype=torch.bool)
    )
    got = own(tokens, seen[:, None, None, :])
    expected = reference(tokens, src_key_padding_mask=~seen)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    gradient, wanted = (torch.autograd.grad(value.square().sum(), tokens)[0] for value in (got, expected))
    torch.testing.assert_close(gradient, wanted, rtol=1e-10, atol=1e-10)


def test_a_layer_starts_as_that_of_torch_does() -> None:
    torch.manual_seed(0)
    own = TransformerLayer(64, num_heads=4, hidden=256)
    reference = nn.TransformerEncoderLayer(64, 4, 256)
    for layer in (own.query, own.key, own.value):
        assert layer.weight.abs().max().item() == pytest.approx(
            reference.self_attn.in_proj_weight.abs().max().item(), rel=0.01
        )
        assert not layer.bias.any()
    assert own.out.weight.std().item() == pytest.approx(
        reference.self_attn.out_proj.weight.std().item(), rel=0.05
    )


def test_dropout_is_active_in_training_only() -> None:
    encoder = SignalEncoder(3, dim=16, dropout=0.5)
    inputs = arrays([6, 4])
    assert not torch.equal(encoder(inputs).tokens, encoder(inputs).tokens)
    encoder.eval()
    assert torch.equal(encoder(inputs).tokens, encoder(inputs).tokens)


def test_its_example_can_be_encoded() -> None:
    encoder = SignalEncoder(7, dim=16, stride=2)
    inputs = encoder.example()
    assert inputs.data.shape == (1, 16, 7)
    assert encoder(inputs).mask.all()
