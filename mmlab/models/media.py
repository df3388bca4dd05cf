"""What brings the tokens of an encoder into the space of a language model."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmlab.batch import Input
from mmlab.models.encoders.encoder import Encoded, Encoder
from mmlab.models.pooling import Pooling


class Resampler(nn.Module):
    """Learned queries read any number of tokens (Perceiver resampler: Alayrac et al. 2022)."""

    def __init__(self, dim: int, *, queries: int, depth: int = 1, num_heads: int = 8) -> None:
        """Make the layers.

        Args:
            dim: Size of the encoder's tokens; `num_heads` divides it.
            queries: Tokens that come out.
            depth: Layers, each of attention and a feed-forward network.
            num_heads: Of attention.

        Raises:
            ValueError: `num_heads` does not divide `dim`.
        """
        super().__init__()
        if dim % num_heads != 0:
            raise ValueError(f"num_heads={num_heads} must divide dim={dim}")
        self.dim = dim
        self.queries = nn.Parameter(torch.randn(queries, dim) * 0.02)
        self.layers = nn.ModuleList(_ResamplerLayer(dim, num_heads) for _ in range(depth))

    def forward(self, encoded: Encoded) -> Encoded:
        """Read every row."""
        queries = self.queries.expand(len(encoded.tokens), -1, -1)
        for layer in self.layers:
            queries = layer(queries, encoded)
        return Encoded(queries, torch.ones(queries.shape[:2], dtype=torch.bool, device=queries.device))


class _ResamplerLayer(nn.Module):
    """Queries attend to themselves and to the tokens."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm_tokens, self.norm_queries, self.norm = (nn.LayerNorm(dim) for _ in range(3))
        self.attention = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        self.feed_forward = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, queries: Float[Tensor, "rows queries dim"], encoded: Encoded) -> Tensor:
        asked = self.norm_queries(queries)
        keys = torch.cat([self.norm_tokens(encoded.tokens), asked], dim=1)
        hidden = torch.cat([~encoded.mask, ~torch.ones_like(asked[..., 0], dtype=torch.bool)], dim=1)
        queries = queries + self.attention(asked, keys, keys, key_padding_mask=hidden, need_weights=False)[0]
        return queries + torch.as_tensor(self.feed_forward(self.norm(queries)))


class MediaTower(nn.Module):
    """Encoder, then fewer tokens if wanted, then a projection into the embeddings of a language model."""

    def __init__(
        self,
        encoder: Encoder,
        *,
        dim: int,
        hidden: int | None = None,
        resampler: Resampler | Pooling | None = None,
        dropout: float = 0.0,
        full_precision: bool = False,
    ) -> None:
        """Put the parts together.

        Args:
            encoder: Gives the tokens of a row.
            dim: Size of the language model's embeddings.
            hidden: Width of the projection's hidden layer (LLaVA-1.5: Liu et al. 2023); None: it is linear.
            resampler: Makes a fixed number of tokens of the encoder's; a pooling makes one of each of its
                parts. None keeps them all.
            dropout: Probability on what the projection reads.
            full_precision: Compute the tower in float32 where the run is in mixed precision. A small trained
                convolutional encoder in bfloat16 can lose most of its gradient to rounding.

        Raises:
            ValueError: A resampler for tokens of another size.
        """
        super().__init__()
        if resampler is not None and resampler.dim not in {encoder.dim, None}:
            raise ValueError(
                f"{type(resampler).__name__} is made for tokens of size {resampler.dim}, but "
                f"{type(encoder).__name__} gives {encoder.dim}: set its dim to {encoder.dim}"
            )
        self.encoder = encoder
        self.dim = dim
        self.resampler = resampler
        self.full_precision = full_precision
        layers: list[nn.Module] = [nn.LayerNorm(encoder.dim), nn.Dropout(dropout)]
        if hidden is not None:
            layers += [nn.Linear(encoder.dim, hidden), nn.GELU()]
        layers += [nn.Linear(encoder.dim if hidden is None else hidden, dim)]
        self.projection = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(dim)

    @torch.no_grad()
    def scale(self, size: float) -> None:
        """Let tokens start at a size, as root mean square: that of embeddings, which are far below 1."""
        self.norm.weight.fill_(size)

    def forward(self, inputs: Input) -> Encoded:
        """Tokens of every row."""
        whole = torch.autocast(inputs.data.device.type, enabled=False)
        with whole if self.full_precision else nullcontext():
            encoded = self.encoder(inputs)
            if isinstance(self.resampler, Pooling):
                tokens = self.resampler(encoded).unflatten(1, (self.resampler.parts, -1))
                encoded = Encoded(tokens, encoded.mask.new_ones(tokens.shape[:2]))
            elif self.resampler is not None:
                encoded = self.resampler(encoded)
            return Encoded(self.norm(self.projection(encoded.tokens)), encoded.mask)
