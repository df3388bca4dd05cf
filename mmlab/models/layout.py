"""Where on its page a token stands, as a vector that is added to what is read of it."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmlab.models.network import Added


class Layout(Added):
    """A linear layer over waves of the box of each token's word, zero at the start.

    W [sin(pi 2^k c), cos(pi 2^k c)] + b for k = 0 to `octaves` - 1 and each c of x_0, y_0, x_1, y_1, x_1 -
    x_0 and y_1 - y_0 (Fourier features: Tancik et al. 2020, arXiv:2006.10739; the six numbers are those of
    LayoutLM, Xu et al. 2020, arXiv:1912.13318, section 2.2). LayoutLM has a row of a table for each
    thousandth of the page instead, and millions of pages to learn them from. A wave says much the same of
    neighbouring places, so a hundred pages teach it.
    """

    def __init__(self, dim: int, *, octaves: int = 5) -> None:
        """Make the layer.

        Args:
            dim: Size of the embeddings of tokens.
            octaves: Waves for each number, in sine and cosine; the longest is twice the page, each next one
                half as long.

        Raises:
            ValueError: There is no wave.
        """
        super().__init__()
        if octaves < 1:
            raise ValueError(f"layout.octaves={octaves}: at least 1")
        self.dim = dim
        self.octaves = octaves
        self.project = nn.Linear(6 * 2 * octaves, dim)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(self, box: Float[Tensor, "rows tokens 4"]) -> Float[Tensor, "rows tokens dim"]:
        """The embedding of each box: left, top, right and bottom as shares of the page."""
        box = box.float()
        numbers = torch.cat([box, box[:, :, 2:] - box[:, :, :2]], dim=2)
        angles = numbers[..., None] * (math.pi * 2.0 ** torch.arange(self.octaves, device=box.device))
        waves = torch.cat([angles.sin(), angles.cos()], dim=3).flatten(2)
        vector: Tensor = self.project(waves)
        return vector
