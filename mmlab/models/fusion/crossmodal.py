"""Each modality looks at each other one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from mmlab.batch import Modality
from mmlab.models.encoders.encoder import Encoded
from mmlab.models.encoders.transformer_layer import TransformerLayer
from mmlab.models.fusion.fusion import Fusion, check_heads, check_layers, has_tokens
from mmlab.models.fusion.shared_space import SharedSpace, never_empty, put_together


class CrossmodalFusion(Fusion):
    """Crossmodal transformers between every ordered pair of modalities (MulT: Tsai et al. 2019).

    For a target m and each source n, layers whose queries are the tokens of m and whose keys and values are
    those of n (arXiv:1906.00295, eq. 3 to 5); then their mean over the sources that a sample has, and a layer
    in which the tokens of m see each other. Where it has none, m stays as it is. The result is the tokens of
    all targets. The paper (section 3) puts the sources side by side instead of taking the mean, and has
    temporal convolutions before and sinusoidal position embeddings on the tokens: here the order of tokens is
    what the encoders say of it.
    """

    def __init__(
        self, dims: dict[str, int], *, dim: int, num_layers: int = 2, num_heads: int = 4, dropout: float = 0.0
    ) -> None:
        """Make the layers.

        Args:
            dims: Size of the tokens of each modality, by its name; two at least.
            dim: Size of the result.
            num_layers: Layers between each pair.
            num_heads: Attention heads; they divide `dim`.
            dropout: Probability in the layers.

        Raises:
            ValueError: One modality only; `num_heads` does not divide `dim`; no layer.
        """
        super().__init__(dims, dim=dim)
        check_heads(dim, num_heads)
        check_layers(num_layers)
        if len(self.dims) < 2:
            raise ValueError(
                f"CrossmodalFusion: dims={dims}: one modality has no other to look at; name two or "
                "more, or take TransformerFusion"
            )

        def layer() -> TransformerLayer:
            return TransformerLayer(dim, num_heads=num_heads, hidden=4 * dim, dropout=dropout)

        self.space = SharedSpace(self.dims, dim=dim)
        self.pairs = [(target, source) for target in self.dims for source in self.dims if target != source]
        self.cross = nn.ModuleDict(
            {f"{m}_from_{n}": nn.ModuleList(layer() for _ in range(num_layers)) for m, n in self.pairs}
        )
        self.own = nn.ModuleDict({modality.value: layer() for modality in self.dims})
        self.norm = nn.LayerNorm(dim)

    def forward(self, encoded: Mapping[Modality, Encoded]) -> Encoded:
        """Fuse the modalities of every sample."""
        parts = self.space(encoded)
        found = {}
        for target, part in parts.items():
            looked, there = [], []
            for source in (source for wanted, source in self.pairs if wanted == target):
                seen = never_empty(parts[source])  # attention to nothing is not a number
                tokens = part.tokens
                for layer in self.cross[f"{target}_from_{source}"]:  # type: ignore[attr-defined]
                    tokens = layer(tokens, seen.mask[:, None, None, :], context=seen.tokens)
                looked.append(tokens)
                there.append(has_tokens(parts[source])[:, :, None])
            weight = torch.stack(there)
            count = weight.sum(dim=0)
            mean = torch.stack(looked).masked_fill(~weight, 0).sum(dim=0) / count.clamp(min=1)
            tokens = torch.where(count > 0, mean, part.tokens)
            mask = never_empty(part).mask
            found[target] = Encoded(self.own[target.value](tokens, mask[:, None, None, :]), part.mask)
        tokens, mask = never_empty(put_together(found))
        return Encoded(self.norm(tokens), mask)
