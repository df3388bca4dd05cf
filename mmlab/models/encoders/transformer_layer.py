"""A transformer layer of plain linear layers, which adaptation and sharding can take apart."""

from __future__ import annotations

import math

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn


class TransformerLayer(nn.Module):
    """Self-attention and a feed-forward with GELU, each behind a norm (Xiong et al. 2020, arXiv:2002.04745).

    The function, and the start, of `nn.TransformerEncoderLayer(norm_first=True, activation="gelu")`.
    """

    def __init__(self, dim: int, *, num_heads: int, hidden: int, dropout: float = 0.0) -> None:
        """Make the layers.

        Args:
            dim: Size of a token's features, a multiple of `num_heads`.
            num_heads: Attention heads.
            hidden: Size inside the feed-forward.
            dropout: Probability at attention weights, inside the feed-forward, and of what both add.
        """
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        self.feedforward_norm = nn.LayerNorm(dim)
        self.widen = nn.Linear(dim, hidden)
        self.narrow = nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)
        for layer in (self.query, self.key, self.value):
            # As if the three were one matrix of 3 dim x dim.
            nn.init.xavier_uniform_(layer.weight, gain=1 / math.sqrt(2))
        for layer in (self.query, self.key, self.value, self.out):
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        tokens: Float[Tensor, "rows tokens dim"],
        mask: Bool[Tensor, "rows 1 #tokens seen"],
        *,
        context: Float[Tensor, "rows seen dim"] | None = None,
    ) -> Float[Tensor, "rows tokens dim"]:
        """Run the layer.

        Args:
            tokens: Of all rows.
            mask: True where a token (third dim) sees another (fourth); each sees at least one.
            context: What the tokens look at; None: each other.
        """
        queries = self.attention_norm(tokens)
        seen = queries if context is None else self.attention_norm(context)
        tokens = tokens + self.dropout(self._attend(queries, seen, mask))
        inside = self.dropout(F.gelu(self.widen(self.feedforward_norm(tokens))))
        tokens = tokens + self.dropout(self.narrow(inside))
        return tokens

    def _attend(self, tokens: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        query, key, value = (
            layer(read).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for layer, read in ((self.query, tokens), (self.key, context), (self.value, context))
        )
        dropout = self.dropout.p if self.training else 0.0
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        attended: Tensor = self.out(seen.transpose(1, 2).flatten(2))
        return attended
