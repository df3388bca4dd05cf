"""Losses of what a user chose among what others chose."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from mmlab import collectives
from mmlab.batch import NOBODY, Embeddings
from mmlab.objectives.loss import Loss, mean_of


def sampled_softmax(
    score: Float[Tensor, "users items"],
    own: Int64[Tensor, " users"],
    others: Bool[Tensor, "users items"],
    log_share: Float[Tensor, " items"],
) -> Float[Tensor, " users"]:
    """-log p of the chosen item among sampled ones, corrected for how often each is sampled.

    -log(exp(s_own) / (exp(s_own) + sum_j exp(s_j))) over the others j, with s_j = score_j - log q_j, where q
    is the probability of an item in a batch (Yi et al. 2019, RecSys, eq. 3 and 4; the chosen item is
    corrected too, as there): what is popular stands in many batches, and would be pushed away without it.

    Args:
        score: Of each user and each item of the global batch.
        own: Column of the item that each user chose.
        others: True at those that stand for what a user did not choose.
        log_share: log q of each item.
    """
    logits = score.float() - log_share
    chosen = torch.zeros_like(others).scatter(1, own[:, None], True)
    logits = logits.masked_fill(~(others | chosen), -torch.inf)
    return F.cross_entropy(logits, own, reduction="none")


def bayesian_ranking(
    score: Float[Tensor, "users items"], own: Int64[Tensor, " users"], others: Bool[Tensor, "users items"]
) -> Float[Tensor, " users"]:
    """-log sigmoid(s_own - s_j), the mean over the others j; 0 where there is none.

    BPR (Rendle et al. 2009, eq. 5 without the prior), with all the others of a batch instead of one draw.

    Args:
        score: Of each user and each item of the global batch.
        own: Column of the item that each user chose.
        others: True at those that stand for what a user did not choose.
    """
    ahead = score.float().gather(1, own[:, None]) - score.float()
    losses = F.softplus(-ahead).masked_fill(~others, 0).sum(dim=1)
    return losses / others.sum(dim=1).clamp(min=1)


class RankingObjective(nn.Module, ABC):
    """A loss of users and the items that they chose; other users' items stand for what they did not."""

    log_scale: Float[Tensor, " 1"]

    def __init__(self, temperature: float = 0.1, *, max_scale: float = 100.0) -> None:
        """Set the temperature, which is learnt.

        Args:
            temperature: Scores are cosines divided by it; where it starts.
            max_scale: Largest inverse temperature that learning may reach.

        Raises:
            ValueError: The temperature is not positive, or its inverse above `max_scale`.
        """
        super().__init__()
        if not 0 < 1 / max_scale <= temperature:
            raise ValueError(
                f"temperature={temperature}: it must be at least 1 / max_scale={1 / max_scale:g}; 0.1 is "
                "usual"
            )
        self.max_log_scale = math.log(max_scale)
        self.log_scale = nn.Parameter(torch.tensor([-math.log(temperature)]))

    def forward(
        self,
        user: Embeddings,
        item: Embeddings,
        *,
        chooser: Int64[Tensor, " samples"],
        log_share: Float[Tensor, " samples"],
        history: Int64[Tensor, "samples steps"],
    ) -> Loss:
        """The mean loss over the users of all ranks that chose something; all must have as many rows.

        An item is no negative of a user who chose it in any row of the global batch or has it in the history
        of this row. (What a user chose at other times may be one: batches do not say it.)

        Args:
            user: Vectors; the group is the number of the item that the user chose, in the same row of `item`.
            item: Vectors; the group is the item's number.
            chooser: The user's number; NOBODY where the user chose nothing.
            log_share: Log of each item's share of the training samples.
            history: Items that each user chose before.
        """
        if self.training:
            with torch.no_grad():
                self.log_scale.clamp_(max=self.max_log_scale)
        with torch.autocast(user.vector.device.type, enabled=False):
            candidates = collectives.gather(item.vector)
            number = collectives.gather(item.group)
            same = collectives.gather(chooser) == chooser[:, None]
            share = collectives.gather(log_share)
            score = self.log_scale.exp() * (user.vector @ candidates.T)
            own = collectives.rank() * len(user.group) + torch.arange(len(user.group), device=number.device)
            chose = user.group != NOBODY
            others = (number != NOBODY) & ~_chosen(number, same, history)
            # A row of nobody compares nothing: its own column alone is left.
            losses = self.losses(score, own, others & chose[:, None], share)
        losses = losses.masked_fill(~chose, 0)
        return mean_of(losses, chose.float(), user.place)

    @abstractmethod
    def losses(self, score: Tensor, own: Tensor, others: Tensor, log_share: Tensor) -> Tensor:
        """The loss of each user."""


class SampledSoftmax(RankingObjective):
    """:func:`sampled_softmax` over the items of the global batch."""

    def __init__(
        self, temperature: float = 0.1, *, max_scale: float = 100.0, correct_popularity: bool = True
    ) -> None:
        """Set the temperature, which is learnt.

        Args:
            temperature: Scores are cosines divided by it; where it starts.
            max_scale: Largest inverse temperature that learning may reach.
            correct_popularity: Whether to subtract log q.

        Raises:
            ValueError: See :class:`RankingObjective`.
        """
        super().__init__(temperature, max_scale=max_scale)
        self.correct_popularity = correct_popularity

    def losses(self, score: Tensor, own: Tensor, others: Tensor, log_share: Tensor) -> Tensor:
        """The loss of each user."""
        return sampled_softmax(score, own, others, log_share * float(self.correct_popularity))


class BayesianRanking(RankingObjective):
    """:func:`bayesian_ranking` over the items of the global batch."""

    def losses(self, score: Tensor, own: Tensor, others: Tensor, log_share: Tensor) -> Tensor:
        """The loss of each user."""
        return bayesian_ranking(score, own, others)


def _chosen(
    number: Int64[Tensor, " items"],
    same: Bool[Tensor, "users items"],
    history: Int64[Tensor, "users steps"],
) -> Bool[Tensor, "users items"]:
    """Which items each user has in the history, or chose in a row that is the `same` user's.

    By a table of the distinct items, a column for each, read out again.
    """
    distinct, column = torch.unique(number, return_inverse=True)
    place = torch.searchsorted(distinct, history.contiguous()).clamp(max=len(distinct) - 1)
    held = (distinct[place] == history) & (history != NOBODY)
    table = torch.zeros(len(history), len(distinct), dtype=torch.int64, device=number.device)
    table = table.scatter_add(1, place, held.long()).scatter_add(1, column.expand_as(same), same.long())
    return table[:, column] > 0
