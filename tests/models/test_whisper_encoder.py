from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import WhisperFeatureExtractor, WhisperModel

from mmlab.batch import NOBODY, Input
from mmlab.models.encoders.audio import WhisperEncoder

pytest_plugins = "tiny_parts"


def sounds(lengths: list[int], fill: float = 0.0) -> Input:
    generator = torch.Generator().manual_seed(0)
    length = torch.tensor(lengths)
    data = torch.randn(len(lengths), max(lengths), generator=generator) * 0.1
    data[torch.arange(max(lengths)) >= length[:, None]] = fill
    return Input(data, torch.arange(len(lengths)), torch.ones(len(lengths), dtype=torch.bool), length)


def padded_run(model: WhisperModel, waveform: torch.Tensor) -> torch.Tensor:
    mel = WhisperFeatureExtractor()(waveform.numpy(), sampling_rate=16_000)["input_features"]
    with torch.no_grad():
        return model.encoder(torch.from_numpy(mel)).last_hidden_state


def test_thirty_seconds_equal_transformers(tiny_whisper: Path) -> None:
    inputs = sounds([480_000])
    with torch.no_grad():
        tokens, mask = WhisperEncoder(str(tiny_whisper)).eval()(inputs)
    expected = padded_run(WhisperModel.from_pretrained(tiny_whisper).eval(), inputs.data[0])
    assert mask.all()
    torch.testing.assert_close(tokens, expected, rtol=0, atol=1e-4)


def test_every_layer_is_that_of_transformers(tiny_whisper: Path) -> None:
    inputs = sounds([480_000])
    model = WhisperModel.from_pretrained(tiny_whisper).eval()
    encoder = WhisperEncoder(str(tiny_whisper), every_layer=True).eval()
    mel = WhisperFeatureExtractor()(inputs.data[0].numpy(), sampling_rate=16_000)["input_features"]
    with torch.no_grad():
        tokens, _ = encoder(inputs)
        wanted = model.encoder(torch.from_numpy(mel), output_hidden_states=True).hidden_states
    assert encoder.layers_per_token == len(wanted)
    assert encoder.dim == tokens.shape[2]
    torch.testing.assert_close(tokens, torch.cat(wanted, dim=2), rtol=0, atol=1e-4)


@settings(max_examples=12, deadline=None)
@given(
    lengths=st.lists(st.one_of(st.integers(1, 700), st.integers(1, 20_000)), min_size=2, max_size=4),
    fill=st.sampled_from([0.0, 0.5]),
)
def test_a_row_gives_the_same_alone_and_in_a_batch(
    tiny_whisper: Path, lengths: list[int], fill: float
) -> None:
    encoder = WhisperEncoder(str(tiny_whisper)).eval()
    inputs = sounds(lengths, fill)
    with torch.no_grad():
        tokens, mask = encoder(inputs)
        for row, length in enumerate(lengths):
            alone = encoder(
                Input(inputs.data[row : row + 1, :length], inputs.owner[:1], inputs.present[:1],
                      inputs.length[row : row + 1])
            )  # fmt: skip
            assert alone.mask.all()
            assert mask[row].sum() == alone.tokens.shape[1] == -(-length // 320)
            torch.testing.assert_close(tokens[row][mask[row]], alone.tokens[0], rtol=0, atol=1e-5)


def test_fewer_layers(tiny_whisper: Path) -> None:
    inputs = sounds([480_000])
    with torch.no_grad():
        tokens = WhisperEncoder(str(tiny_whisper), num_layers=2).eval()(inputs).tokens
    model = WhisperModel.from_pretrained(tiny_whisper).eval()
    model.encoder.layers = model.encoder.layers[:2]
    torch.testing.assert_close(tokens, padded_run(model, inputs.data[0]), rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match=r"num_layers=4.*has 3, choose 1 to 3"):
        WhisperEncoder(str(tiny_whisper), num_layers=4)


def test_every_trainable_parameter_gets_a_finite_gradient_from_a_row_of_nobody(tiny_whisper: Path) -> None:
    encoder = WhisperEncoder(str(tiny_whisper), num_layers=2)
    one = torch.ones(1, dtype=torch.int64)
    tokens = encoder(Input(torch.zeros(1, 1), NOBODY * one, torch.tensor([False]), one)).tokens
    tokens.square().sum().backward()
    assert tokens.isfinite().all()
    assert all(p.grad.isfinite().all() for p in encoder.parameters() if p.requires_grad)


def test_a_sound_beyond_the_positions_names_the_remedy(tiny_whisper: Path) -> None:
    with pytest.raises(ValueError, match=r"a sound of 30\.1 s.*for 30 s: lower"):
        WhisperEncoder(str(tiny_whisper))(sounds([481_000]))


def test_half_precision(tiny_whisper: Path) -> None:
    encoder = WhisperEncoder(str(tiny_whisper)).to(torch.bfloat16)
    assert encoder(sounds([5_000])).tokens.dtype == torch.bfloat16


@pytest.mark.slow
def test_the_real_encoder_stays_close_to_its_padded_run(asset: Callable[[str], str]) -> None:
    encoder = WhisperEncoder(asset("whisper-tiny-en")).eval()
    steps = torch.arange(40_000) / 16_000
    rising = (0.3 * torch.sin(2 * torch.pi * (200 + 400 * steps) * steps))[None]
    one = torch.ones(1, dtype=torch.int64)
    with torch.no_grad():
        tokens = encoder(Input(rising, 0 * one, torch.tensor([True]), len(steps) * one)).tokens[0]
        mel = WhisperFeatureExtractor()(rising[0].numpy(), sampling_rate=16_000)["input_features"]
        padded = encoder.backbone(torch.from_numpy(mel)).last_hidden_state[0, : len(tokens)]
    assert torch.cosine_similarity(tokens.mean(0), padded.mean(0), dim=0) > 0.8
