"""The outer product of what the modalities say: every interaction of any subset of them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmlab.batch import Modality
from mmlab.models.encoders.encoder import Encoded
from mmlab.models.fusion.fusion import Fusion, has_tokens, mean_token

_LARGEST = 2**22
"""Entries of the outer product of one sample: more is a mistake in the sizes."""


class _Factors(nn.Module):
    """[1; relu(W_m norm(x_m) + b_m)] of each modality; [1; 0] of one that a sample lacks."""

    def __init__(self, dims: Mapping[Modality, int], *, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(
            {
                modality.value: nn.Sequential(nn.LayerNorm(size), nn.Linear(size, dim), nn.ReLU())
                for modality, size in dims.items()
            }
        )

    def forward(self, encoded: Mapping[Modality, Encoded]) -> list[Float[Tensor, "samples factor"]]:
        found = []
        for name, layer in self.layers.items():
            part = encoded[Modality(name)]
            said = layer(mean_token(part)).masked_fill(~has_tokens(part), 0)
            found.append(torch.cat([torch.ones_like(said[:, :1]), said], dim=1))
        return found


class TensorFusion(Fusion):
    """One token for each sample: z = W vec(f_1 x f_2 x ...) + b, of the outer product of all factors.

    f_m = [1; relu(W_m norm(x_m) + b_m)] with x_m the mean of the modality's tokens, so that the product holds
    each modality alone, each pair, and so on (TFN: Zadeh et al. 2017, arXiv:1707.07250, eq. 2). One that a
    sample lacks is [1; 0]: all products with it vanish.
    """

    def __init__(self, dims: dict[str, int], *, dim: int, factor: int = 16, dropout: float = 0.0) -> None:
        """Make the layers.

        Args:
            dims: Size of the tokens of each modality, by its name.
            dim: Size of the result.
            factor: Size of each factor without its 1; the product has (factor + 1) ** modalities entries.
            dropout: Probability on the product.

        Raises:
            ValueError: `factor` below 1, or the product would have more than four million entries.
        """
        super().__init__(dims, dim=dim)
        if factor < 1:
            raise ValueError(f"factor={factor}: it must be at least 1")
        size = (factor + 1) ** len(self.dims)
        if size > _LARGEST:
            raise ValueError(
                f"factor={factor} makes a product of {size:,} entries for {len(self.dims)} modalities: lower "
                "it, or take LowRankTensorFusion"
            )
        self.factors = _Factors(self.dims, dim=factor)
        self.dropout = nn.Dropout(dropout)
        self.layer = nn.Linear(size, dim)

    def forward(self, encoded: Mapping[Modality, Encoded]) -> Encoded:
        """Fuse the modalities of every sample."""
        product = reduce(
            lambda left, right: (left[:, :, None] * right[:, None, :]).flatten(1), self.factors(encoded)
        )
        fused = self.layer(self.dropout(product))
        return Encoded(fused[:, None], torch.ones_like(fused[:, :1], dtype=torch.bool))


class LowRankTensorFusion(Fusion):
    """:class:`TensorFusion` whose W is a sum of `rank` outer products, so that the product is never made.

    z = sum_r w_r prod_m (W_m^r f_m) + b (LMF: Liu et al. 2018, arXiv:1806.00064, eq. 8): cost and memory grow
    with the number of modalities, not with its power.
    """

    def __init__(
        self, dims: dict[str, int], *, dim: int, factor: int = 32, rank: int = 4, dropout: float = 0.0
    ) -> None:
        """Make the layers.

        Args:
            dims: Size of the tokens of each modality, by its name.
            dim: Size of the result.
            factor: Size of each factor without its 1.
            rank: Products that are summed.
            dropout: Probability on the factors.

        Raises:
            ValueError: `rank` or `factor` below 1.
        """
        super().__init__(dims, dim=dim)
        if rank < 1 or factor < 1:
            raise ValueError(f"rank={rank}, factor={factor}: each must be at least 1")
        self.factors = _Factors(self.dims, dim=factor)
        self.dropout = nn.Dropout(dropout)
        self.maps = nn.ParameterDict(
            {m.value: torch.randn(rank, factor + 1, dim) * (factor + 1) ** -0.5 for m in self.dims}
        )
        self.weight = nn.Parameter(torch.full((rank,), rank**-0.5))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, encoded: Mapping[Modality, Encoded]) -> Encoded:
        """Fuse the modalities of every sample."""
        factors = zip(self.dims, self.factors(encoded), strict=True)
        products = reduce(
            torch.mul, [torch.einsum("rfd,bf->brd", self.maps[m.value], self.dropout(f)) for m, f in factors]
        )
        fused = torch.einsum("r,brd->bd", self.weight, products) + self.bias
        return Encoded(fused[:, None], torch.ones_like(fused[:, :1], dtype=torch.bool))
