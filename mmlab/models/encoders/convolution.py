"""Small pictures by a few convolutions that are trained from scratch."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from mmlab.batch import Input, Modality
from mmlab.models.encoders.batch_norm import run_owned
from mmlab.models.encoders.encoder import Encoded, Encoder


class ConvolutionEncoder(Encoder):
    """Convolutions of stride 2 with batch normalisation; each place of the last map is a token, row by row.

    Behind the features of a token stand its row and column, from -1 to 1: what a relation network needs to
    tell near from far. Four layers of 3 x 3 with 24 channels are the network for small pictures of Santoro et
    al. (2017, arXiv:1706.01427, section 4).
    """

    modality = Modality.IMAGE

    def __init__(self, channels: tuple[int, ...] = (24, 24, 24, 24), *, kernel_size: int = 3) -> None:
        """Make the layers.

        Args:
            channels: Of each layer's output, from the first to the last.
            kernel_size: Pixels that a layer sees on each side; odd.

        Raises:
            ValueError: No layer, or an even `kernel_size`.
        """
        super().__init__()
        if len(channels) == 0 or kernel_size % 2 == 0:
            raise ValueError(
                f"channels={list(channels)}, kernel_size={kernel_size}: give one layer or more, and an odd "
                "size"
            )
        layers: list[nn.Module] = []
        for given, made in zip((3, *channels), channels, strict=False):
            layers += [
                nn.Conv2d(given, made, kernel_size, stride=2, padding=kernel_size // 2, bias=False),
                nn.BatchNorm2d(made),
                nn.ReLU(),
            ]
        self.layers = nn.Sequential(*layers)
        self.dim = channels[-1] + 2

    def encode(self, inputs: Input) -> Encoded:
        """Encode pixels, uint8 [rows, 3, height, width]."""
        dtype = next(self.parameters()).dtype
        pixels = (inputs.data.float() / 127.5 - 1).to(dtype)
        features = run_owned(self.layers, self.layers, pixels, inputs.owner)
        rows, columns = (
            torch.linspace(-1, 1, size, device=pixels.device, dtype=features.dtype)
            for size in features.shape[2:]
        )
        places = torch.stack(torch.meshgrid(rows, columns, indexing="ij")).expand(len(features), -1, -1, -1)
        tokens = torch.cat([features, places], dim=1).flatten(2).transpose(1, 2)
        return Encoded(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device))

    def example(self) -> Input:
        """A small picture."""
        return replace(super().example(), data=torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
