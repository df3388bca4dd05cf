from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import WhisperFeatureExtractor

from mmlab.models.encoders.log_mel import CHUNK, LogMel, num_frames


def sound(samples: int, seed: int) -> np.ndarray:
    """Noise under a slow envelope, loudest at one place, which may be the very end."""
    random = np.random.default_rng(seed)
    noise = random.standard_normal(samples) * 0.1 * random.uniform(0, 1, samples).round(1)
    noise[random.integers(samples) if seed % 2 else -1] = 1.0
    return noise.astype(np.float32)


def batch(sounds: list[np.ndarray], fill: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    length = torch.tensor([len(each) for each in sounds])
    waveform = torch.full((len(sounds), int(length.max())), fill)
    for row, each in enumerate(sounds):
        waveform[row, : len(each)] = torch.from_numpy(each)
    return waveform, length


def extract(each: np.ndarray, mels: int = 80) -> torch.Tensor:
    features = WhisperFeatureExtractor(feature_size=mels)(each, sampling_rate=16_000)["input_features"]
    return torch.from_numpy(features[0])


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.one_of(st.integers(1, 900), st.integers(1, 40_000)), min_size=1, max_size=4),
    seed=st.integers(0, 100),
)
def test_each_row_is_what_the_extractor_gives_it_padded(lengths: list[int], seed: int) -> None:
    sounds = [sound(length, seed + row) for row, length in enumerate(lengths)]
    waveform, length = batch(sounds, fill=0.7)
    mel = LogMel()(waveform, length)
    frames = num_frames(length).tolist()
    assert mel.shape == (len(lengths), 80, max(frames))
    for row, each in enumerate(sounds):
        expected = extract(each)[:, : frames[row]]
        torch.testing.assert_close(mel[row, :, : frames[row]], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("samples", [CHUNK, CHUNK - 1, CHUNK - 30, CHUNK - 161, CHUNK - 321, CHUNK - 500])
def test_the_end_of_thirty_seconds(samples: int) -> None:
    each = sound(samples, seed=0)
    waveform, length = batch([each])
    frames = int(num_frames(length))
    torch.testing.assert_close(LogMel()(waveform, length)[0], extract(each)[:, :frames], rtol=0, atol=1e-4)


def test_other_numbers_of_bands() -> None:
    each = sound(8_000, seed=1)
    torch.testing.assert_close(LogMel(128)(*batch([each]))[0], extract(each, 128)[:, :50], rtol=0, atol=1e-4)


def test_against_the_formula_in_float64() -> None:
    each = sound(4_000, seed=3)
    padded = np.concatenate([each[200:0:-1], each, np.zeros(1_000)]).astype(np.float64)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    power = np.stack([np.abs(np.fft.rfft(window * padded[160 * f : 160 * f + 400])) ** 2 for f in range(27)])
    level = np.log10(np.maximum(power @ LogMel().filters.double().numpy(), 1e-10)).T
    expected = (np.maximum(level, level.max() - 8) / 4 + 1)[:, :25]
    np.testing.assert_allclose(LogMel()(*batch([each]))[0].numpy(), expected, atol=1e-4)


def test_silence_is_finite() -> None:
    mel = LogMel()(torch.zeros(1, 1), torch.tensor([1]))
    torch.testing.assert_close(mel, torch.full((1, 80, 1), -1.5))


def test_autocast_does_not_lower_the_precision() -> None:
    waveform, length = batch([sound(3_000, seed=2)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mel = LogMel()(waveform, length)
    torch.testing.assert_close(mel, LogMel()(waveform, length), rtol=0, atol=0)
