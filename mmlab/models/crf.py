"""A conditional random field over the tags of a sentence: which tag may follow which, learned.

A sequence of tags y has the score start[y_1] + sum_t emission[t, y_t] + sum_t between[y_t-1, y_t] + end[y_n];
its probability is the exponential of that over the sum of those of all sequences (Lafferty et al. 2001).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn


class Transitions(NamedTuple):
    """Scores of what follows what."""

    start: Float[Tensor, " tags"]
    between: Float[Tensor, "tags tags"]
    """From the row's tag to the column's."""
    end: Float[Tensor, " tags"]

    def to(self, device: torch.device) -> Transitions:
        """The same on a device."""
        return Transitions(*(scores.to(device) for scores in self))

    def plus(self, other: Transitions) -> Transitions:
        """The sum of both, on the device of these."""
        return Transitions(*(mine + its.to(mine.device) for mine, its in zip(self, other, strict=True)))


def negative_log_likelihood(
    emission: Float[Tensor, "sentences words tags"],
    tag: Int64[Tensor, "sentences words"],
    there: Bool[Tensor, "sentences words"],
    transitions: Transitions,
) -> Float[Tensor, " sentences"]:
    """-log p(tags) of each sentence, in float32; 0 for one without words.

    Args:
        emission: Of each word.
        tag: The right tags; those behind the end may be any.
        there: Which words there are, from the left.
        transitions: Of the field.
    """
    emission = emission.float()
    start, between, end = (part.float() for part in transitions)
    state = start + emission[:, 0]
    own = emission.gather(2, tag[:, :, None])[:, :, 0]
    score = start[tag[:, 0]] + own[:, 0]
    for word in range(1, emission.shape[1]):
        moved = (state[:, :, None] + between).logsumexp(dim=1) + emission[:, word]
        state = torch.where(there[:, [word]], moved, state)
        step = between[tag[:, word - 1], tag[:, word]] + own[:, word]
        score = score + torch.where(there[:, word], step, 0.0)
    last = tag.gather(1, (there.sum(dim=1, keepdim=True) - 1).clamp(min=0))[:, 0]
    loss = (state + end).logsumexp(dim=1) - score - end[last]
    # Added, so that sentences of one word give all scores a gradient, of zeros.
    return torch.where(there.any(dim=1), loss, 0.0) + between.sum() * 0


def best_tags(
    emission: Float[Tensor, "sentences words tags"],
    there: Bool[Tensor, "sentences words"],
    transitions: Transitions,
) -> Int64[Tensor, "sentences words"]:
    """The sequence with the highest score (Viterbi 1967); zeros behind the end."""
    emission = emission.float()
    start, between, end = (part.float() for part in transitions)
    state, steps = start + emission[:, 0], []
    for word in range(1, emission.shape[1]):
        best, before = (state[:, :, None] + between).max(dim=1)
        stay = torch.arange(state.shape[1], device=state.device).expand_as(before)
        steps.append(torch.where(there[:, [word]], before, stay))
        state = torch.where(there[:, [word]], best + emission[:, word], state)
    tag = (state + end).argmax(dim=1)
    found = [tag]
    for before in reversed(steps):
        tag = before.gather(1, tag[:, None])[:, 0]
        found.append(tag)
    return torch.stack(found[::-1], dim=1).masked_fill(~there, 0)


class TagField(nn.Module):
    """The scores of what follows what, zeros at the start, and what they make of emissions."""

    def __init__(self, tags: int) -> None:
        """Make the scores for so many tags."""
        super().__init__()
        self.start, self.end = nn.Parameter(torch.zeros(tags)), nn.Parameter(torch.zeros(tags))
        self.between = nn.Parameter(torch.zeros(tags, tags))

    def forward(
        self,
        emission: Float[Tensor, "sentences words tags"],
        there: Bool[Tensor, "sentences words"],
        tag: Int64[Tensor, "sentences words"] | None = None,
        *,
        limits: Transitions | None = None,
    ) -> Tensor:
        """-log p of the right tags of each sentence, or where none are given the best ones.

        Args:
            emission: Of each word.
            there: Which words there are, from the left.
            tag: The right ones.
            limits: Added to what was learned, for the best ones.
        """
        learned = Transitions(self.start, self.between, self.end)
        if tag is not None:
            return negative_log_likelihood(emission, tag, there, learned)
        scores = learned if limits is None else learned.plus(limits)
        return best_tags(emission, there, scores)
