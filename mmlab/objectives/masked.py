"""Masked language modelling: which tokens are hidden, and the loss of guessing them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from mmlab.objectives.loss import Loss
from mmlab.objectives.noise import HIDDEN, uniform
from mmlab.objectives.sequence import SaidTokens, TokenCrossEntropy

REPLACED, RANDOM = 0.8, 0.1
"""Of the tokens to guess, the shares that become the mask token and a random one; the rest stays."""


class Hidden(NamedTuple):
    """Text of which some tokens are to be guessed."""

    ids: Int64[Tensor, "rows steps"]
    """What the model reads."""
    target: Bool[Tensor, "rows steps"]
    """Which tokens it is to guess."""


def hide_tokens(
    ids: Int64[Tensor, "rows steps"],
    words: Bool[Tensor, "rows steps"],
    noise: Float[Tensor, "rows steps 3"],
    *,
    mask: int,
    drawn: Int64[Tensor, " ordinary"],
    share: float,
) -> Hidden:
    """Hide a share of the words of each row, as BERT does (Devlin et al. 2019, section 3.1, task 1).

    Of n words, max(1, round(share n)) are to be guessed, each choice as likely; a row without words has none.
    Of these, 80 % become the mask token, 10 % a random token, and 10 % stay as they are.

    Args:
        ids: The text.
        words: Which tokens may be hidden: neither padding nor special ones.
        noise: Uniform in [0, 1), independent: which tokens, what becomes of each, and which random one it is.
        mask: Id of the mask token.
        drawn: Ids that a random token is one of.
        share: Of the words that are to be guessed.
    """
    count = words.sum(dim=1, keepdim=True)
    wanted = (share * count).round().long().clamp(min=1)
    place = noise[:, :, 0].masked_fill(~words, 2.0).argsort(dim=1, stable=True).argsort(dim=1)
    target = words & (place < wanted)
    fate = noise[:, :, 1]
    random = drawn[(noise[:, :, 2].double() * len(drawn)).long().clamp(max=len(drawn) - 1)]
    changed = torch.where(fate < REPLACED, mask, torch.where(fate < REPLACED + RANDOM, random, ids))
    return Hidden(torch.where(target, changed, ids), target)


class MaskedTokens(nn.Module):
    """Hides a share of the words, and measures how well they are guessed: a mean over those of all ranks."""

    def __init__(self, share: float = 0.15, *, label_smoothing: float = 0.0) -> None:
        """Take the settings.

        Args:
            share: Of the words of a text that are to be guessed; one at least.
            label_smoothing: Share of probability that is spread over the whole vocabulary.

        Raises:
            ValueError: A share outside (0, 1), or a smoothing outside [0, 1).
        """
        super().__init__()
        if not 0 < share < 1:
            raise ValueError(f"share={share}: it must be above 0 and below 1; BERT hides 0.15")
        self.share = share
        self.cross_entropy = TokenCrossEntropy(label_smoothing)

    def hide(
        self,
        ids: Int64[Tensor, "rows steps"],
        words: Bool[Tensor, "rows steps"],
        place: Int64[Tensor, " rows"],
        *,
        mask: int,
        drawn: Int64[Tensor, " ordinary"],
        seed: int,
    ) -> Hidden:
        """Hide words by random numbers that are hashes of seed, place and step.

        What is hidden of a sample is the same however it is batched, padded and spread over ranks.

        Args:
            ids: The text.
            words: Which tokens may be hidden.
            place: Of each row's sample; rows of one sample are told apart by their order.
            mask: Id of the mask token.
            drawn: Ids that a random token is one of.
            seed: Another one hides other words.
        """
        steps = torch.arange(ids.shape[1], device=ids.device)[None, :, None]
        kinds = torch.arange(3, device=ids.device)
        nth = (place[:, None] == place).tril(-1).sum(dim=1)
        noise = uniform(HIDDEN, seed, place[:, None, None], nth[:, None, None], steps, kinds)
        return hide_tokens(ids, words, noise, mask=mask, drawn=drawn, share=self.share)

    def forward(self, guessed: SaidTokens) -> Loss:
        """The loss; 0 where no rank has a token to guess. Every rank must call it."""
        loss: Loss = self.cross_entropy(guessed)
        return loss
