"""From fused tokens to numbers for each class, or for each word."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mmlab.models.encoders.encoder import Encoded
from mmlab.models.pooling import MeanPooling, Pooling


class ClassificationHead(nn.Module):
    """Logits of each sample, from its tokens: pooling, norm, a hidden layer if wanted, a linear layer."""

    def __init__(
        self,
        dim: int,
        *,
        classes: int,
        hidden: int | None = None,
        dropout: float = 0.0,
        pooling: Pooling | None = None,
    ) -> None:
        """Make the layers.

        Args:
            dim: Size of the tokens.
            classes: Number of logits.
            hidden: Width of the hidden layer; None: there is none.
            dropout: Probability on what the last linear layer reads.
            pooling: Makes one vector of the tokens; None takes their mean.

        Raises:
            ValueError: A pooling made for tokens of another size.
        """
        super().__init__()
        if pooling is not None and pooling.dim not in {dim, None}:
            raise ValueError(
                f"{type(pooling).__name__} is made for tokens of size {pooling.dim}, the head for {dim}: set "
                f"its dim to {dim}"
            )
        self.dim = dim
        self.classes = classes
        self.pooling = MeanPooling() if pooling is None else pooling
        size = dim * self.pooling.parts
        layers: list[nn.Module] = [nn.LayerNorm(size)]
        if hidden is not None:
            layers += [nn.Linear(size, hidden), nn.GELU()]
        layers += [nn.Dropout(dropout), nn.Linear(size if hidden is None else hidden, classes)]
        self.layers = nn.Sequential(*layers)

    def forward(self, encoded: Encoded) -> Float[Tensor, "samples classes"]:
        """Logits, float32."""
        logits: Tensor = self.layers(self.pooling(encoded))
        return logits.float()


class WordHead(nn.Module):
    """Logits of each word of a vocabulary by BERT's transform: E norm(gelu(W x + b)) + c.

    E are the word embeddings of a text encoder (Press and Wolf 2017, arXiv:1608.05859), which stay its own.
    """

    def __init__(self, dim: int, *, words: int, vocabulary: int) -> None:
        """Make the layers.

        Args:
            dim: Size of the tokens.
            words: Size of the word embeddings.
            vocabulary: Number of words.
        """
        super().__init__()
        self.transform = nn.Sequential(nn.Linear(dim, words), nn.GELU(), nn.LayerNorm(words))
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(
        self, tokens: Float[Tensor, "tokens dim"], table: Float[Tensor, "vocabulary words"]
    ) -> Float[Tensor, "tokens vocabulary"]:
        """Logits, float32.

        Args:
            tokens: Each stands for one word.
            table: Word embeddings.
        """
        words = self.transform(tokens)
        return F.linear(words, table.to(words.dtype)).float() + self.bias
