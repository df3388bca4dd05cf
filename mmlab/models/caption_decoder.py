"""A small decoder that says a text word by word, looking at what the text is of."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mmlab.models.encoders.encoder import Encoded
from mmlab.models.encoders.signal import sinusoids
from mmlab.models.encoders.transformer_layer import TransformerLayer


class CaptionDecoder(nn.Module):
    """Causal transformer layers that alternate with looks at a picture, or whatever the text is of.

    Words come in by the word embeddings of a text encoder. The decoder reads no more of that encoder, whose
    tokens have seen the whole text; CoCa (Yu et al. 2022, arXiv:2205.01917, section 3.2) makes both of one
    causal stack.
    """

    def __init__(
        self,
        dim: int,
        *,
        words: int,
        sees: int,
        num_layers: int = 2,
        num_heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        """Make the layers.

        Args:
            dim: Size of the decoder's tokens; even, a multiple of `num_heads`.
            words: Size of the word embeddings.
            sees: Size of the tokens that it looks at.
            num_layers: Layers over the words; as many look at the picture.
            num_heads: Attention heads.
            dropout: Probability in the layers.

        Raises:
            ValueError: Sizes that do not fit together.
        """
        super().__init__()
        if dim % 2 or dim % num_heads:
            raise ValueError(f"dim={dim} must be even and a multiple of num_heads={num_heads}")
        self.dim = dim
        self.words = words
        self.sees = sees
        self.read = nn.Sequential(nn.LayerNorm(words), nn.Linear(words, dim))
        self.look = nn.Sequential(nn.LayerNorm(sees), nn.Linear(sees, dim))

        def layers() -> nn.ModuleList:
            return nn.ModuleList(
                TransformerLayer(dim, num_heads=num_heads, hidden=4 * dim, dropout=dropout)
                for _ in range(num_layers)
            )

        self.saying = layers()
        self.looking = layers()
        self.norm = nn.LayerNorm(dim)

    def forward(
        self, ids: Int64[Tensor, "rows steps"], table: Float[Tensor, "vocabulary words"], seen: Encoded
    ) -> Float[Tensor, "rows steps dim"]:
        """What stands at each word knows it and those before it.

        Args:
            ids: Texts, padded on the right.
            table: Word embeddings.
            seen: What each row is of; at least one token in each.
        """
        steps = ids.shape[1]
        tokens = self.read(nn.functional.embedding(ids, table).float())
        tokens = tokens + sinusoids(steps, self.dim, device=ids.device).to(tokens)
        context = self.look(seen.tokens.float().masked_fill(~seen.mask[:, :, None], 0))
        causal = torch.ones(steps, steps, dtype=torch.bool, device=ids.device).tril()
        causal = causal.expand(len(ids), 1, -1, -1)
        for say, look in zip(self.saying, self.looking, strict=True):
            tokens = say(tokens, causal)
            tokens = look(tokens, seen.mask[:, None, None, :], context=context)
        said: Tensor = self.norm(tokens)
        return said
