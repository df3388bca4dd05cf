"""Plain arrays by small networks that are trained from scratch: over time, or step by step."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mmlab.batch import Input, Modality
from mmlab.models.encoders.encoder import Encoded, Encoder
from mmlab.models.encoders.transformer_layer import TransformerLayer


class SignalEncoder(Encoder):
    """A temporal convolution, then transformer layers under a mask.

    A row gives the same tokens alone and in any batch. The data module is expected to bring each channel to
    about unit scale.
    """

    modality = Modality.SIGNAL

    def __init__(
        self,
        channels: int,
        *,
        dim: int = 128,
        num_layers: int = 2,
        num_heads: int = 4,
        kernel_size: int = 5,
        stride: int = 1,
        dropout: float = 0.0,
        modality: str | None = None,
    ) -> None:
        """Build the network.

        Args:
            channels: Values per time step.
            dim: Size of a token's features; even, a multiple of `num_heads`.
            num_layers: Transformer layers.
            num_heads: Attention heads.
            kernel_size: Time steps that the convolution sees; odd.
            stride: Time steps per token.
            dropout: Probability in the transformer layers.
            modality: What the arrays stand for, as in :class:`mmlab.data.signal.SignalReader`; None: signals.

        Raises:
            ValueError: Sizes that do not fit together.
        """
        super().__init__()
        if dim % 2 or dim % num_heads:
            raise ValueError(f"dim={dim} must be even and a multiple of num_heads={num_heads}")
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size} must be odd: use {kernel_size + 1}")
        if modality is not None:
            self.modality = Modality(modality)
        self.channels = channels
        self.dim = dim
        self.stride = stride
        self.convolution = nn.Conv1d(channels, dim, kernel_size, stride, padding=kernel_size // 2)
        self.norm = nn.LayerNorm(dim)
        self.layers = nn.ModuleList(
            TransformerLayer(dim, num_heads=num_heads, hidden=4 * dim, dropout=dropout)
            for _ in range(num_layers)
        )
        self.last_norm = nn.LayerNorm(dim)

    def encode(self, inputs: Input) -> Encoded:
        """Encode arrays, float32 [rows, steps, channels].

        Raises:
            ValueError: Arrays of another width.
        """
        _check_width(self, inputs, self.channels)
        valid = inputs.mask
        assert valid is not None, "a signal without lengths"
        # Zeros after a row's end, as the convolution pads a row that stands alone.
        signal = inputs.data.masked_fill(~valid[:, :, None], 0).transpose(1, 2)
        tokens = self.norm(F.gelu(self.convolution(signal)).transpose(1, 2))
        mask = valid[:, :: self.stride]
        tokens = tokens + sinusoids(tokens.shape[1], self.dim, device=tokens.device).to(tokens)
        for layer in self.layers:
            tokens = layer(tokens, mask[:, None, None, :])
        return Encoded(self.last_norm(tokens), mask)

    def example(self) -> Input:
        """A few steps of all channels."""
        return _steps(self.channels, self.convolution.weight.dtype)


class FeatureEncoder(Encoder):
    """Features that others have computed, each step by itself: y = gelu(W dropout(x) + b).

    Bring each feature to about unit scale before: the sources of mmlab do.
    """

    modality = Modality.SIGNAL

    def __init__(
        self, channels: int, *, dim: int = 128, dropout: float = 0.0, modality: str | None = None
    ) -> None:
        """Build the layer.

        Args:
            channels: Features of a step.
            dim: Size of a token's features.
            dropout: Probability on what is read.
            modality: What the features are of; None: signals.
        """
        super().__init__()
        if modality is not None:
            self.modality = Modality(modality)
        self.channels = channels
        self.dim = dim
        self.layer = nn.Sequential(nn.Dropout(dropout), nn.Linear(channels, dim), nn.GELU())

    def encode(self, inputs: Input) -> Encoded:
        """Encode arrays, float32 [rows, steps, channels].

        Raises:
            ValueError: Arrays of another width.
        """
        _check_width(self, inputs, self.channels)
        assert inputs.mask is not None, "features without lengths"
        return Encoded(self.layer(inputs.data.masked_fill(~inputs.mask[:, :, None], 0)), inputs.mask)

    def example(self) -> Input:
        """A few steps of all features."""
        linear = self.layer[1]
        assert isinstance(linear, nn.Linear)
        return _steps(self.channels, linear.weight.dtype)


def _check_width(encoder: Encoder, inputs: Input, channels: int) -> None:
    width = inputs.data.shape[-1]
    if width != channels:
        raise ValueError(
            f"arrays of {encoder.modality} have {width} channels, but {type(encoder).__name__} is made for "
            f"{channels}: set `channels` of the encoder and of the reader (data.{encoder.modality}) to the "
            "width of the stored arrays"
        )


def _steps(channels: int, dtype: torch.dtype) -> Input:
    one = torch.ones(1, dtype=torch.int64)
    data = torch.zeros(1, 16, channels, dtype=dtype)
    return Input(data, owner=one - 1, present=one.bool(), length=one * 16)


def sinusoids(steps: int, dim: int, *, device: torch.device | None = None) -> Float[Tensor, "steps dim"]:
    """Fixed position vectors (Vaswani et al. 2017, section 3.5): sines, then cosines."""
    rates = torch.exp(torch.arange(dim // 2, device=device) * (-math.log(10_000) / max(dim // 2 - 1, 1)))
    angles = torch.arange(steps, device=device)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)
