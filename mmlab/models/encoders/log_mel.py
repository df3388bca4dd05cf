"""Whisper's log-mel spectrogram, computed on the device for rows of uneven length."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

SAMPLE_RATE = 16_000
WINDOW = 400
HOP = 160
CHUNK = 30 * SAMPLE_RATE
"""Samples that Whisper's feature extractor pads to."""


def num_frames(samples: Int64[Tensor, " rows"]) -> Int64[Tensor, " rows"]:
    """Frames whose centre lies within a sound of so many samples; at least one for one sample."""
    return (samples + HOP - 1) // HOP


def log_mel(
    waveform: Float[Tensor, "rows samples"],
    length: Int64[Tensor, " rows"],
    filters: Float[Tensor, "bins mels"],
) -> Float[Tensor, "rows mels frames"]:
    """Compute the spectrogram of `WhisperFeatureExtractor`, without its padding to 30 s.

    S = max(log10(max(|STFT|^2 filters, 1e-10)), max S - 8) / 4 + 1 (Radford et al. 2022, section 2.2, and
    their `log_mel_spectrogram`), window 25 ms, hop 10 ms, the maximum over the row. Each frame of a
    sound is as the extractor gives it; frames after a row's end hold silence and must be masked.

    Args:
        waveform: At most 30 s of sound at 16 kHz; what stands after a row's length is taken as silence.
        length: Samples of each row.
        filters: Mel filter bank, 201 frequency bins.

    Returns:
        num_frames(samples) frames, float32.
    """
    samples = waveform.shape[1]
    assert samples <= CHUNK, f"{samples} samples, more than the {CHUNK} of Whisper's extractor"
    frames = (samples + HOP - 1) // HOP
    with torch.autocast(waveform.device.type, enabled=False):
        beyond = torch.arange(samples, device=waveform.device) >= length[:, None]
        sound = waveform.float().masked_fill(beyond, 0)
        # Silence up to two frames after the longest row: windows there still reach into its last samples
        # and may hold its maximum. At 30 s the extractor mirrors the sound's end instead, and so do we.
        sound = F.pad(sound, (0, min(HOP * (frames + 2), CHUNK) - samples))
        window = torch.hann_window(WINDOW, device=waveform.device)
        spectrum = torch.stft(sound, WINDOW, HOP, window=window, return_complex=True)
        power = spectrum.abs().square().transpose(1, 2) @ filters.float()
        # The extractor drops the frame that a sound of 30 s has beyond this.
        power = power[:, : CHUNK // HOP]
        level = power.clamp(min=1e-10).log10().transpose(1, 2)
        level = torch.maximum(level, level.amax(dim=(1, 2), keepdim=True) - 8)
        return (level[:, :, :frames] + 4) / 4


class LogMel(nn.Module):
    """:func:`log_mel` with the filter bank of a Whisper model (Slaney's scale and area normalisation)."""

    def __init__(self, num_mels: int = 80) -> None:
        """Make the filter bank for so many mel bands."""
        super().__init__()
        bank = mel_filter_bank(
            num_frequency_bins=1 + WINDOW // 2,
            num_mel_filters=num_mels,
            min_frequency=0.0,
            max_frequency=SAMPLE_RATE / 2,
            sampling_rate=SAMPLE_RATE,
            norm="slaney",
            mel_scale="slaney",
        )
        self.filters: Tensor
        self.register_buffer("filters", torch.from_numpy(bank).float(), persistent=False)

    def forward(
        self, waveform: Float[Tensor, "rows samples"], length: Int64[Tensor, " rows"]
    ) -> Float[Tensor, "rows mels frames"]:
        """Compute the spectrogram; see :func:`log_mel`."""
        return log_mel(waveform, length, self.filters)
