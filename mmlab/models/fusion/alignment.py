"""Modalities that run in time, brought to one clock or to the steps of one of them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mmlab.batch import Modality
from mmlab.models.encoders.encoder import Encoded
from mmlab.models.fusion.concatenation import ConcatenationFusion
from mmlab.models.fusion.fusion import Fusion
from mmlab.models.fusion.shared_space import SharedSpace, never_empty
from mmlab.models.pooling import SegmentPooling


class ClockFusion(ConcatenationFusion):
    """Resamples every modality to the same ticks, and fuses what stands at each.

    z_t = gelu(W [norm(x_1(t)); norm(x_2(t)); ...] + b), where x_m(t) is linear between the tokens of the
    modality, or their mean over a tick where they are more than ticks. They are spread evenly over the sample
    (:func:`resample`), as steps with times are once they have been read by a
    :class:`~mmlab.data.clock.Clock` of as many ticks. In the place of a modality that a sample lacks stands a
    learned vector, zeros at the start. The result has a token for each tick.
    """

    def __init__(self, dims: dict[str, int], *, dim: int, ticks: int = 16, dropout: float = 0.0) -> None:
        """Make the layers.

        Args:
            dims: Size of the tokens of each modality, by its name.
            dim: Size of the result.
            ticks: Of the common clock, for the whole of a sample.
            dropout: Probability on the result.

        Raises:
            ValueError: `ticks` is below 1.
        """
        super().__init__(dims, dim=dim, dropout=dropout)
        if ticks < 1:
            raise ValueError(f"ticks={ticks}: a clock has one at least")
        self.ticks = ticks

    def steps(self, encoded: Encoded) -> Float[Tensor, "samples ticks dim"]:
        """What stands at each tick."""
        return resample(encoded, self.ticks)


class AlignmentFusion(Fusion):
    """Aligns every modality to the tokens of one by attention that never goes back, and adds them there.

    z_i = norm(x_i + sum_m sum_j p_m(i, j) y_mj / sum_j p_m(i, j)), where x and y are the projected tokens
    (:class:`SharedSpace`) of the anchor and of the others: token j of modality m belongs to token i with
    probability p_m(i, j), over all assignments in which i never falls as j rises (:func:`monotonic`; scores
    are scaled dot products of two more projections). For words and the sound they are spoken in, that is a
    forced alignment that is learned. A sample without the anchor has one blank token to align to.
    """

    def __init__(self, dims: dict[str, int], *, dim: int, anchor: str = "text", dropout: float = 0.0) -> None:
        """Make the layers.

        Args:
            dims: Size of the tokens of each modality, by its name.
            dim: Size of the result.
            anchor: The modality whose tokens the result has.
            dropout: Probability on what is added.

        Raises:
            ValueError: `anchor` is not one of `dims`.
        """
        super().__init__(dims, dim=dim)
        if anchor not in dims:
            raise ValueError(f"anchor={anchor}: it must be one of the modalities to fuse, {', '.join(dims)}")
        self.anchor = Modality(anchor)
        self.space = SharedSpace(self.dims, dim=dim)
        others = [modality.value for modality in self.dims if modality is not self.anchor]
        self.queries = nn.ModuleDict({name: nn.Linear(dim, dim) for name in others})
        self.keys = nn.ModuleDict({name: nn.Linear(dim, dim) for name in others})
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(self, encoded: Mapping[Modality, Encoded]) -> Encoded:
        """Fuse the modalities of every sample; a token for each of the anchor's."""
        parts = self.space(encoded)
        words = never_empty(parts[self.anchor])
        tokens = words.tokens
        for name in self.queries:
            part = parts[Modality(name)]
            query, key = self.queries[name](words.tokens), self.keys[name](part.tokens)
            score = query @ key.transpose(1, 2) / math.sqrt(self.dim)
            weight = monotonic(score, words.mask, part.mask)
            weight = weight / weight.sum(dim=2, keepdim=True).clamp(min=1e-6)
            tokens = tokens + self.dropout(weight @ part.tokens)
        return Encoded(self.norm(tokens), words.mask)


def resample(encoded: Encoded, ticks: int) -> Float[Tensor, "samples ticks dim"]:
    """Tokens of each sample at evenly spread moments, linear between them; zeros where it has none.

    Token i of n stands at (i + 1/2) / n, tick t of T at (t + 1/2) / T; before the first and after the last it
    is that one (`torch.nn.functional.interpolate` with `align_corners=False`). Where n > T it is the mean
    over the tick's stretch (:class:`~mmlab.models.pooling.SegmentPooling`): lines would leave tokens out.
    """
    tokens = encoded.tokens.float().masked_fill(~encoded.mask[:, :, None], 0)
    # Valid tokens first: those of several rows of a sample may have gaps between them.
    order = (~encoded.mask).long().sort(dim=1, stable=True).indices
    tokens = tokens.gather(1, order[:, :, None].expand_as(tokens))
    count = encoded.mask.sum(dim=1, keepdim=True)
    tick = (torch.arange(ticks, device=count.device) + 0.5) / ticks
    place = (tick * count - 0.5).clamp(min=0).minimum((count - 1).clamp(min=0).float())
    low = place.floor().long()
    high = (low + 1).minimum((count - 1).clamp(min=0))
    share = (place - low)[:, :, None]
    first, second = (
        tokens.gather(1, index[:, :, None].expand(-1, -1, tokens.shape[2])) for index in (low, high)
    )
    lines = first + share * (second - first)
    if encoded.mask.shape[1] <= ticks:
        return lines
    means = SegmentPooling(ticks)(never_empty(encoded)).unflatten(1, (ticks, -1))
    return torch.where((count > ticks)[:, :, None], means, lines)


def monotonic(
    score: Float[Tensor, "samples anchors steps"],
    anchors: Bool[Tensor, "samples anchors"],
    steps: Bool[Tensor, "samples steps"],
) -> Float[Tensor, "samples anchors steps"]:
    """Probability that a step belongs to an anchor, over all assignments that never go back.

    An assignment a_1 <= a_2 <= ... of steps to anchors has the probability exp(sum_j score[a_j, j]) / Z. The
    sums over all of them are those of a hidden Markov model that moves to any later state (forward-backward:
    Rabiner 1989, eq. 19 to 27).

    Args:
        score: Of each pair.
        anchors: Which are there, one at least.
        steps: Which are there; others belong to no anchor.

    Returns:
        Sums to 1 over anchors for each step that is there, to 0 for others.
    """
    least = -1e9
    score = score.float().masked_fill(~anchors[:, :, None], least)
    score = torch.where(steps[:, None, :], score, 0.0)  # a step that is not there moves nothing
    there = torch.where(anchors, 0.0, least)
    started = steps.cumsum(dim=1) > 1
    forward, state = [], there
    for number, column in enumerate(score.unbind(dim=2)):
        moved = torch.where(started[:, [number]], state.logcumsumexp(dim=1), state)
        state = torch.where(steps[:, [number]], moved + column, state)
        forward.append(state)
    backward, state = [torch.zeros_like(there)], torch.zeros_like(there)
    for number in range(score.shape[2] - 1, 0, -1):
        later = (state + score[:, :, number] + there).flip(1).logcumsumexp(dim=1).flip(1)
        state = torch.where(steps[:, [number]], later, state)
        backward.append(state)
    posterior = (torch.stack(forward, dim=2) + torch.stack(backward[::-1], dim=2)).softmax(dim=1)
    return posterior.masked_fill(~steps[:, None, :] | ~anchors[:, :, None], 0)
