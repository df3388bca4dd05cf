"""What all layers of an encoder say, weighed."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from mmlab.models.encoders.encoder import Encoded, Encoder


class LayerMix(nn.Module):
    """A learned weighted sum of an encoder's layers: y = sum_l softmax(w)_l norm(x_l).

    As SUPERB's probes weigh them (Yang et al. 2021, arXiv:2105.01051, section 2.2). It stands behind the
    encoder, so it is trained where the encoder is frozen, or its features were computed once.
    """

    def __init__(self, layers: int, *, start: int | None = None) -> None:
        """Make the weights.

        Args:
            layers: That stand side by side in a token.
            start: The layer, from 0, that has half of the weight at first, where few samples would not tell
                which one is the best; None: all have the same.

        Raises:
            ValueError: There is no such layer.
        """
        super().__init__()
        if start is not None and not 0 <= start < layers:
            raise ValueError(f"start={start}: the layers are numbered from 0 to {layers - 1}")
        self.layers = layers
        self.weight = nn.Parameter(torch.zeros(layers))
        if start is not None and layers > 1:
            with torch.no_grad():
                self.weight[start] = math.log(layers - 1)

    def size(self, encoder: Encoder) -> int:
        """Size of what comes of an encoder's tokens.

        Raises:
            ValueError: It gives more or fewer layers.
        """
        if encoder.layers_per_token != self.layers:
            raise ValueError(
                f"LayerMix is made for {self.layers} layers, but {type(encoder).__name__} gives "
                f"{encoder.layers_per_token}: set layers to that, and the encoder's every_layer to true to "
                "have all"
            )
        return encoder.dim // self.layers

    def forward(self, encoded: Encoded) -> Encoded:
        """Weigh the layers of every token."""
        parts = encoded.tokens.float().reshape(*encoded.mask.shape, self.layers, -1)
        parts = F.layer_norm(parts, parts.shape[3:])
        return Encoded(torch.einsum("l,rtld->rtd", self.weight.softmax(dim=0), parts), encoded.mask)
