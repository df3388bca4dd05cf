"""Sound by the encoder of a Whisper model, without its padding to 30 seconds."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from mmlab.batch import Input, Modality
from mmlab.models.encoders.encoder import Encoded, Encoder
from mmlab.models.encoders.log_mel import HOP, SAMPLE_RATE, LogMel, num_frames
from mmlab.models.pretrained import load_whisper_encoder


class WhisperEncoder(Encoder):
    """A Whisper encoder (Radford et al. 2022) on waveforms of 16 kHz, 50 tokens a second.

    A row costs what its batch's longest sound costs, not 30 s: the convolutions, the first T position
    vectors, the layers under a mask, the final norm. A row gives the same tokens alone and in any batch.

    At 30 s the tokens equal those of transformers. Shorter sounds lack the silence that Whisper was trained
    to see behind them: with whisper-tiny.en and 60 spoken captions of 0.3 to 10.6 s (median 1.1 s), the mean
    of a sound's tokens has cosine 0.91 (0.69 at least) with that of the padded run, where the means of two
    different sounds have 0.75; after centring, 59 of 60 are nearest to their own.
    """

    modality = Modality.AUDIO

    def __init__(
        self,
        name: str,
        *,
        pretrained: bool = True,
        num_layers: int | None = None,
        every_layer: bool = False,
    ) -> None:
        """Load the model.

        Args:
            name: An asset, a folder, or a Hugging Face id.
            pretrained: False starts from random weights.
            num_layers: Keep the first layers only. In the middle of a speech recogniser stands more of how
                something was said than at its end: for emotions from whisper-tiny.en, 3 of 4 layers did best.
            every_layer: Give what the first layer reads and what each layer says side by side, for a
                :class:`~mmlab.models.layer_mix.LayerMix` of `layers + 1` to weigh: tokens are as many times
                as large. The last stands behind the final norm, as in transformers.

        Raises:
            ValueError: No such model, or it has fewer layers.
        """
        super().__init__()
        self.name = name
        self.backbone = load_whisper_encoder(name, pretrained=pretrained)
        self.every_layer = every_layer
        self.log_mel = LogMel(self.backbone.config.num_mel_bins)
        if num_layers is not None:
            available = len(self.backbone.layers)
            if not 1 <= num_layers <= available:
                raise ValueError(
                    f"num_layers={num_layers}: {name!r} has {available}, choose 1 to {available}"
                )
            self.backbone.layers = self.backbone.layers[:num_layers]
        self.layers_per_token = 1 + len(self.backbone.layers) * every_layer
        self.dim = self.backbone.config.d_model * self.layers_per_token

    def encode(self, inputs: Input) -> Encoded:
        """Encode waveforms, float32 [rows, samples] in [-1, 1].

        Raises:
            ValueError: The sound is longer than the model's positions (30 s).
        """
        assert inputs.length is not None, "sound without lengths"
        positions = self.backbone.embed_positions.weight
        seconds, limit = inputs.data.shape[1] / SAMPLE_RATE, len(positions) * 2 * HOP / SAMPLE_RATE
        if seconds > limit:
            raise ValueError(
                f"a sound of {seconds:.1f} s, but {self.name!r} has positions for {limit:g} s: "
                "lower the longest sound in the data module"
            )
        mel = self.log_mel(inputs.data, inputs.length).to(self.log_mel.filters.dtype)
        frames = _mask(num_frames(inputs.length), mel.shape[2])
        tokens = self._convolve(mel, frames)
        tokens = tokens + positions[: tokens.shape[1]]
        tokens = F.dropout(tokens, self.backbone.dropout, self.training)
        # A token is two frames; the last may be half filled.
        mask = frames[:, ::2]
        attention = mask[:, None, None, :].expand(-1, 1, tokens.shape[1], -1)
        seen = []
        for layer in self.backbone.layers:
            seen.append(tokens)
            tokens = layer(tokens, attention)
        tokens = self.backbone.layer_norm(tokens)
        return Encoded(torch.cat([*seen, tokens], dim=2) if self.every_layer else tokens, mask)

    def _convolve(
        self, mel: Float[Tensor, "rows mels frames"], frames: Bool[Tensor, "rows frames"]
    ) -> Float[Tensor, "rows tokens dim"]:
        """Run both convolutions; after each row's end both see zeros, as if the row were alone."""
        valid = frames[:, None, :]
        hidden = F.gelu(self.backbone.conv1(mel.masked_fill(~valid, 0)))
        hidden = F.gelu(self.backbone.conv2(hidden.masked_fill(~valid, 0)))
        return hidden.transpose(1, 2)


def _mask(count: Tensor, size: int) -> Bool[Tensor, "rows size"]:
    """True for the first `count` of `size` steps of each row."""
    steps = count.new_ones(size).cumsum(0) - 1
    return steps < count[:, None]
