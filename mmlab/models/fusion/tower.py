"""What brings the rows of one modality to a fusion: one token for each sample that has any, or all."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mmlab.batch import NOBODY, Input
from mmlab.models.encoders.encoder import Encoded, Encoder
from mmlab.models.layer_mix import LayerMix
from mmlab.models.pooling import MeanPooling, Pooling


class FusionTower(nn.Module):
    """Encoder and pooling, and from rows to samples.

    Of several rows of one sample it takes the mean: two pictures count as much as one. Where tokens are kept
    those of all its rows stand one after the other.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        pooling: Pooling | None = None,
        keep_tokens: bool = False,
        layers: LayerMix | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            encoder: Gives the tokens of a row.
            pooling: Makes one vector of a row's tokens; None takes their mean.
            keep_tokens: Bring all tokens to the fusion, for one that looks at each.
            layers: Weighs the layers of an encoder that gives all of them; None: it gives one.

        Raises:
            ValueError: A pooling or weights of layers made for tokens of another size; a pooling of tokens
                that are kept.
        """
        super().__init__()
        dim = encoder.dim if layers is None else layers.size(encoder)
        if pooling is not None and keep_tokens:
            raise ValueError(
                f"keep_tokens with {type(pooling).__name__}: a pooling leaves one vector of them: leave one "
                "out"
            )
        pooling = MeanPooling() if pooling is None else pooling
        if pooling.dim is not None and pooling.dim != dim:
            raise ValueError(
                f"{type(pooling).__name__} is made for tokens of size {pooling.dim}, but "
                f"{type(encoder).__name__} gives {dim}: set its dim to {dim}"
            )
        self.encoder = encoder
        self.layers = layers
        self.pooling = None if keep_tokens else pooling
        self.dim = dim if self.pooling is None else dim * pooling.parts

    def forward(self, inputs: Input) -> Encoded:
        """Tokens of each sample, float32; none where it owns no row."""
        encoded = self.encoder(inputs)
        if self.layers is not None:
            encoded = self.layers(encoded)
        if self.pooling is None:
            return side_by_side(encoded, inputs)
        vector = self.pooling(encoded).float()
        owned = inputs.owner != NOBODY
        owner = inputs.owner.clamp(min=0)
        samples = len(inputs.present)
        # Rows of nobody are added too, as zeros: the encoder has a gradient where no sample owns a row.
        total = vector.new_zeros(samples, self.dim)
        total = total.index_add(0, owner, vector.masked_fill(~owned[:, None], 0))
        rows = vector.new_zeros(samples).index_add(0, owner, owned.to(vector))
        mean = total / rows.clamp(min=1)[:, None]
        return Encoded(mean[:, None], inputs.present[:, None])


def side_by_side(encoded: Encoded, inputs: Input) -> Encoded:
    """The tokens of all rows of each sample, one row after the other, without those that stand for nothing.

    The result has as many columns as the sample with most tokens, one at least.
    """
    mask = owned(encoded.mask, inputs)
    tokens = encoded.tokens.float()
    laid, there = lay_out(tokens[mask], mask, inputs)
    # Added, so that tokens of nobody have a gradient too, of zeros.
    nothing = tokens.masked_fill(~mask[:, :, None], 0).sum() * 0
    return Encoded(laid + nothing, there)


def owned(mask: Bool[Tensor, "rows tokens"], inputs: Input) -> Bool[Tensor, "rows tokens"]:
    """Which of these tokens some sample owns."""
    return mask & (inputs.owner != NOBODY)[:, None]


def lay_out(chosen: Float[Tensor, "chosen dim"], mask: Bool[Tensor, "rows tokens"], inputs: Input) -> Encoded:
    """Give each sample a row of what was chosen of its tokens, at least one column wide.

    Args:
        chosen: `tokens[mask]`, or what came of it.
        mask: Tokens that were chosen, each of one that a sample owns.
        inputs: Whose rows they are.
    """
    owner = inputs.owner.clamp(min=0)[:, None].expand_as(mask)[mask]
    samples = len(inputs.present)
    count = torch.bincount(owner, minlength=samples)
    longest = max(int(count.max()), 1)
    # Owners ascend, so a sample's tokens lie one after the other.
    place = torch.arange(len(owner), device=owner.device) - (count.cumsum(0) - count)[owner]
    laid = chosen.new_zeros(samples * longest, chosen.shape[1])
    laid = laid.index_put((owner * longest + place,), chosen)
    there = torch.arange(longest, device=count.device) < count[:, None]
    return Encoded(laid.reshape(samples, longest, -1), there)
