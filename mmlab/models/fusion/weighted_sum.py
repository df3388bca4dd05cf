"""A weighted sum of what the modalities say: fixed, learned, or weighed anew for each sample."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmlab.batch import Modality
from mmlab.models.encoders.encoder import Encoded
from mmlab.models.fusion.fusion import Fusion, check_choice, has_tokens, mean_token

Weights = Literal["equal", "learned", "gated"]


class WeightedSumFusion(Fusion):
    """One token for each sample: z = sum_m a_m tanh(W_m norm(x_m) + b_m), with sum_m a_m = 1.

    x_m is the mean of the modality's tokens. The weights a are a softmax over the modalities that a sample
    has, of zeros (`equal`), of the logarithms of numbers that are given (so that those of a sample that lacks
    one keep their ratio), of one learned number for each (`learned`), or of a linear layer over all x side
    by side (`gated`: the gated multimodal unit of Arevalo et al. 2017, arXiv:1702.01992, eq. 3, with one gate
    for each modality instead of one for each feature). A sample without any has zeros.
    """

    def __init__(
        self,
        dims: dict[str, int],
        *,
        dim: int,
        weights: Weights | dict[str, float] = "gated",
        dropout: float = 0.0,
    ) -> None:
        """Make the layers.

        Args:
            dims: Size of the tokens of each modality, by its name.
            dim: Size of the result.
            weights: Where the weights come from; or what they are, of each modality by its name.
            dropout: Probability on the result.

        Raises:
            ValueError: Given weights are not one above 0 for each modality, or come from nowhere.
        """
        super().__init__(dims, dim=dim)
        logs = None
        if isinstance(weights, dict):
            if set(weights) != set(dims) or not all(0 < w < math.inf for w in weights.values()):
                raise ValueError(f"weights={weights}: give one above 0 for each of {', '.join(dims)}")
            logs = torch.tensor([math.log(weights[m.value]) for m in self.dims])
        else:
            check_choice("weights", weights, get_args(Weights))
        self.fixed: Tensor | None
        self.register_buffer("fixed", logs, persistent=False)
        self.weights = weights
        self.norms = nn.ModuleDict({m.value: nn.LayerNorm(size) for m, size in self.dims.items()})
        self.layers = nn.ModuleDict({m.value: nn.Linear(size, dim) for m, size in self.dims.items()})
        self.importance = nn.Parameter(torch.zeros(len(self.dims))) if weights == "learned" else None
        self.gate = nn.Linear(sum(self.dims.values()), len(self.dims)) if weights == "gated" else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, encoded: Mapping[Modality, Encoded]) -> Encoded:
        """Fuse the modalities of every sample."""
        present = torch.cat([has_tokens(encoded[m]) for m in self.dims], dim=1)
        means = [self.norms[m.value](mean_token(encoded[m])) for m in self.dims]
        means = [mean.masked_fill(~present[:, [n]], 0) for n, mean in enumerate(means)]
        said = torch.stack(
            [torch.tanh(self.layers[m.value](x)) for m, x in zip(self.dims, means, strict=True)]
        )
        some = present.any(dim=1, keepdim=True)
        # Where there is nothing, nothing is masked: a softmax of nothing is not a number.
        weight = self._score(means).masked_fill(~present & some, -torch.inf).softmax(dim=1)
        weight = torch.where(some, weight, 0.0)
        fused = self.dropout(torch.einsum("bm,mbd->bd", weight, said))
        return Encoded(fused[:, None], torch.ones_like(fused[:, :1], dtype=torch.bool))

    def _score(self, means: list[Tensor]) -> Float[Tensor, "samples modalities"]:
        if self.gate is not None:
            scores: Tensor = self.gate(torch.cat(means, dim=1))
            return scores
        equal = means[0].new_zeros(len(means[0]), len(means))
        given = self.fixed if self.importance is None else self.importance
        return equal if given is None else equal + given
