"""Does this text belong to this picture? Which pairs are asked about, and the loss of the answers."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mmlab.batch import NOBODY
from mmlab.objectives.loss import Loss, mean_of
from mmlab.objectives.noise import NEGATIVES, uniform


class Pairs(NamedTuple):
    """Texts beside other things, each given by the sample of the batch that it is from."""

    text: Int64[Tensor, " pairs"]
    beside: Int64[Tensor, " pairs"]
    belongs: Float[Tensor, " pairs"]
    """1 where both are of one sample, 0 otherwise."""
    weight: Float[Tensor, " pairs"]
    """0 where a pair says nothing: a sample lacks one of both, or there is nothing wrong to put beside it."""
    sample: Int64[Tensor, " pairs"]
    """The sample that the pair is about."""


def hard_negatives(
    similarity: Float[Tensor, "samples samples"],
    group: Int64[Tensor, " samples"],
    noise: Float[Tensor, "samples samples"],
) -> Int64[Tensor, " samples"]:
    """Draw for each sample another of another group, with probabilities in proportion to exp(similarity).

    That is how ALBEF finds texts that nearly belong to a picture (Li et al. 2021, arXiv:2107.07651, section
    3.2). Drawn by the Gumbel-max trick: argmax of s - log(-log u).

    Args:
        similarity: Of the first (rows) and the second (columns) part of each sample, divided by a
            temperature.
        group: Of each sample; :data:`~mmlab.batch.NOBODY` is neither given one nor drawn.
        noise: Uniform in [0, 1), independent.

    Returns:
        The sample drawn, or NOBODY where there is none.
    """
    there = group != NOBODY
    allowed = (group[:, None] != group) & there[:, None] & there
    smallest = torch.finfo(noise.dtype).tiny
    # 1 is not drawn, but rounding may come to it, and log(-log 1) is no number.
    gumbel = -(-noise.clamp(min=smallest, max=1 - torch.finfo(noise.dtype).eps).log()).log()
    score = (similarity.float() + gumbel).masked_fill(~allowed, -torch.inf)
    return torch.where(allowed.any(dim=1), score.argmax(dim=1), NOBODY)


def pairs_of(
    similarity: Float[Tensor, "samples samples"],
    group: Int64[Tensor, " samples"],
    noise: Float[Tensor, "2 samples samples"],
) -> Pairs:
    """Each sample's own pair, its text beside another's picture, and its picture beside another's text.

    The others are drawn from this rank's own samples. There are three pairs of every sample, so that all
    ranks run the model on as many.

    Args:
        similarity: Of the texts (rows) and the pictures (columns), divided by a temperature.
        group: Of the samples that have both, NOBODY for others.
        noise: Uniform in [0, 1), independent.
    """
    own = torch.arange(len(group), device=group.device)
    picture = hard_negatives(similarity, group, noise[0])
    text = hard_negatives(similarity.T, group, noise[1])
    used = (picture != NOBODY) & (text != NOBODY)
    one, zero = torch.ones_like(own).float(), torch.zeros_like(own).float()
    return Pairs(
        text=torch.cat([own, own, text.clamp(min=0)]),
        beside=torch.cat([own, picture.clamp(min=0), own]),
        belongs=torch.cat([one, zero, zero]),
        weight=used.float().repeat(3),
        sample=own.repeat(3),
    )


def sample_vectors(
    vector: Float[Tensor, "rows dim"], owner: Int64[Tensor, " rows"], samples: int
) -> Float[Tensor, "samples dim"]:
    """The direction of the mean of each sample's rows; zeros where it has none."""
    owned = (owner != NOBODY)[:, None]
    total = vector.new_zeros(samples, vector.shape[1])
    total = total.index_add(0, owner.clamp(min=0), vector.masked_fill(~owned, 0))
    return F.normalize(total, dim=1)


class Matching(nn.Module):
    """Binary cross-entropy over pairs that belong together and hard ones that do not.

    Negatives come from a rank's own samples: more of them in a batch make harder ones.
    """

    def __init__(self, temperature: float = 0.07) -> None:
        """Take the settings.

        Args:
            temperature: Similarities are divided by it: the lower, the harder the negatives.

        Raises:
            ValueError: It is not positive.
        """
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature={temperature}: it must be above 0; ALBEF starts from 0.07")
        self.temperature = temperature

    @torch.no_grad()
    def choose(
        self,
        text: Float[Tensor, "samples dim"],
        beside: Float[Tensor, "samples dim"],
        group: Int64[Tensor, " samples"],
        place: Int64[Tensor, " samples"],
        *,
        seed: int,
    ) -> Pairs:
        """Choose the pairs of a batch, by random numbers that are hashes of seed and places.

        Args:
            text: Unit vector of each sample's text.
            beside: Of what belongs to it. Zeros throughout draw every other sample alike.
            group: Of the samples that have both, NOBODY for others.
            place: Of each sample.
            seed: Another one draws others.
        """
        with torch.autocast(text.device.type, enabled=False):
            similarity = text.float() @ beside.float().T / self.temperature
        kinds = torch.arange(2, device=place.device)[:, None, None]
        noise = uniform(NEGATIVES, seed, kinds, place[:, None], place)
        return pairs_of(similarity, group, noise)

    def forward(
        self, logits: Float[Tensor, " pairs"], pairs: Pairs, place: Int64[Tensor, " samples"]
    ) -> Loss:
        """The loss; 0 where no rank has a pair that counts. Every rank must call it.

        Args:
            logits: Of each pair: positive where both are said to belong together.
            pairs: What they are of.
            place: Of each sample.
        """
        losses = F.binary_cross_entropy_with_logits(logits.float(), pairs.belongs, reduction="none")
        return mean_of(losses * pairs.weight, pairs.weight, place[pairs.sample])
