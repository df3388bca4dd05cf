"""Contrastive losses between two sets of embeddings, exact over all ranks: InfoNCE and sigmoid.

Both take embeddings of two modalities. Rows of equal group are positives of each other, however many there
are; rows of group :data:`~mmlab.batch.NOBODY` take no part. The loss is that of the global batch. Each rank
compares its own rows with everybody's and returns `world_size` times its part of the sum: the mean over
ranks of the returned values is the global loss, and the mean over ranks of the gradients, which DDP and
FSDP take, is its gradient. All ranks must pass the same number of rows. Beside the value stands what each
row adds to it (:class:`~mmlab.objectives.loss.Share`), at no cost in InfoNCE.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from mmlab import collectives
from mmlab.batch import NOBODY, Embeddings
from mmlab.objectives.loss import Loss, Share


def info_nce(a: Embeddings, b: Embeddings, scale: Float[Tensor, " 1"] | float) -> Loss:
    """Softmax cross-entropy of a row's positives among all rows of the other side, in both directions.

    For a row i of one side with positives P(i) and candidates C on the other side,

        loss(i) = -1/|P(i)| sum_{p in P(i)} log(exp(scale x_i.x_p) / sum_{c in C} exp(scale x_i.x_c)),

    the outer form of Khosla et al. 2020 (arXiv:2004.11362, eq. 2) between modalities, as in UniCL (Yang et
    al. 2022, arXiv:2204.03610). Each direction is a mean over the rows that have a positive; the result is
    the mean of both directions. With one positive a row it is CLIP's loss (Radford et al. 2021).

    Args:
        a: Unit vectors of one modality.
        b: Unit vectors of the other. A row without any positive still serves as a negative.
        scale: Inverse temperature.

    Returns:
        The loss, see the module's text about ranks; 0 where no row has a positive anywhere. It has a share
        for each direction, whose rows are the queries.
    """
    a, b = _prepared(a), _prepared(b)
    all_a, all_b = _gathered(a), _gathered(b)
    with torch.autocast(a.vector.device.type, enabled=False):
        of_a, of_b = _cross_entropy(a, all_b, scale), _cross_entropy(b, all_a, scale)
        towards_b = of_a.loss.sum() / _count_matched(all_a.group, all_b.group)
        towards_a = of_b.loss.sum() / _count_matched(all_b.group, all_a.group)
        value = collectives.world_size() * (towards_b + towards_a) / 2
    return Loss(value, tuple(share._replace(loss=share.loss.detach()) for share in (of_a, of_b)))


def sigmoid_loss(
    a: Embeddings,
    b: Embeddings,
    scale: Float[Tensor, " 1"] | float,
    bias: Float[Tensor, " 1"] | float,
) -> Loss:
    """Binary cross-entropy of every pair: 1 for equal groups, 0 otherwise.

    loss = -1/N sum_{i, j} log sigmoid(z_ij (scale a_i.b_j + bias)) with z_ij = 1 for equal groups and -1
    otherwise (SigLIP: Zhai et al. 2023, arXiv:2303.15343, eq. 1). N is the mean of the numbers of rows of
    both sides that take part: the batch size where no modality is missing.

    Args:
        a: Unit vectors of one modality.
        b: Unit vectors of the other.
        scale: Inverse temperature.
        bias: Added to every pair's logit; about -log of the number of negatives at the start.

    Returns:
        The loss, see the module's text about ranks; 0 where one side has no row anywhere. In its share a
        pair counts for the sample of `a`.
    """
    a, b = _prepared(a), _prepared(b)
    all_b = _gathered(b)
    taking_part = torch.cat([a.group != NOBODY, b.group != NOBODY])
    rows = collectives.total(taking_part.sum() / 2).clamp(min=1)
    with torch.autocast(a.vector.device.type, enabled=False):
        logits = scale * (a.vector @ all_b.vector.T) + bias
        sign = torch.where(_positive(a.group, all_b.group), 1.0, -1.0).to(logits)
        compared = (a.group != NOBODY)[:, None] & (all_b.group != NOBODY)
        pairs = torch.where(compared, -F.logsigmoid(sign * logits), 0.0)
        value = collectives.world_size() * pairs.sum() / rows
    share = Share(
        loss=torch.cat([pairs.detach().sum(dim=1), pairs.new_zeros(len(b.group))]),
        weight=taking_part / 2,
        place=torch.cat([a.place, b.place]),
    )
    return Loss(value, (share,))


def _prepared(rows: Embeddings) -> Embeddings:
    """Rows in at least float32; those that take no part are zeros, so that no NaN of theirs spreads."""
    vector = rows.vector.to(torch.promote_types(rows.vector.dtype, torch.float32))
    return rows._replace(vector=torch.where((rows.group != NOBODY)[:, None], vector, 0.0))


def _gathered(rows: Embeddings) -> Embeddings:
    """The rows of all ranks, with gradient."""
    return Embeddings(*(collectives.gather(field) for field in rows))


def _positive(
    query: Int64[Tensor, " queries"], candidate: Int64[Tensor, " candidates"]
) -> Bool[Tensor, "queries candidates"]:
    """Which pairs belong together."""
    return (query[:, None] == candidate) & (query != NOBODY)[:, None]


def _count_matched(query: Int64[Tensor, " queries"], candidate: Int64[Tensor, " candidates"]) -> Tensor:
    """How many queries have a positive, at least 1 so that it can divide."""
    return (torch.isin(query, candidate) & (query != NOBODY)).sum().clamp(min=1)


def _cross_entropy(queries: Embeddings, candidates: Embeddings, scale: Float[Tensor, " 1"] | float) -> Share:
    """The loss that :func:`info_nce` states of each query that has a positive, with gradient."""
    logits = scale * (queries.vector @ candidates.vector.T)
    positive = _positive(queries.group, candidates.group)
    positives = positive.sum(dim=1)
    # The lowest finite number, not -inf: a row without any candidate would turn into NaN.
    lowest = torch.finfo(logits.dtype).min
    normaliser = logits.masked_fill(candidates.group == NOBODY, lowest).logsumexp(dim=1)
    mean_logit = torch.where(positive, logits, 0.0).sum(dim=1) / positives.clamp(min=1)
    loss = torch.where(positives > 0, normaliser - mean_logit, 0.0)
    return Share(loss, (positives > 0).to(loss), queries.place)


class ContrastiveObjective(nn.Module, ABC):
    """A loss between the embeddings of two modalities; holds what the loss itself learns."""

    @abstractmethod
    def forward(self, a: Embeddings, b: Embeddings) -> Loss:
        """The loss of two modalities; symmetric in its arguments."""


class InfoNCE(ContrastiveObjective):
    """:func:`info_nce` with a temperature, learnt as its logarithm as in CLIP."""

    log_scale: Float[Tensor, " 1"]

    def __init__(
        self, temperature: float = 0.07, *, learnable: bool = True, max_scale: float = 100.0
    ) -> None:
        """Set the temperature.

        Args:
            temperature: Similarities are divided by it; where it starts if it is learnt.
            learnable: Whether it is learnt.
            max_scale: Largest inverse temperature that learning may reach.

        Raises:
            ValueError: If the temperature is not positive, or its inverse above `max_scale`.
        """
        super().__init__()
        _check_temperature(temperature)
        if 1 / temperature > max_scale:
            raise ValueError(
                f"temperature={temperature}: its inverse is above max_scale={max_scale}; "
                f"take at least {1 / max_scale:g}, or a larger max_scale"
            )
        self.max_log_scale = math.log(max_scale)
        # Shape (1,) because FSDP2 rejects parameters without dimensions.
        log_scale = torch.tensor([-math.log(temperature)])
        if learnable:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    @property
    def scale(self) -> Float[Tensor, " 1"]:
        """The inverse temperature."""
        return self.log_scale.exp()

    def forward(self, a: Embeddings, b: Embeddings) -> Loss:
        """The loss of two modalities."""
        if self.training:
            # In place, as CLIP does: a clamp in the graph has no gradient above the limit, so a scale that
            # an optimizer step took beyond it would stay there.
            with torch.no_grad():
                self.log_scale.clamp_(max=self.max_log_scale)
        return info_nce(a, b, self.scale)


class SigmoidLoss(ContrastiveObjective):
    """:func:`sigmoid_loss` with learnt temperature and bias; the defaults are SigLIP's."""

    def __init__(self, temperature: float = 0.1, *, bias: float = -10.0) -> None:
        """Set where temperature and bias start.

        Args:
            temperature: Similarities are divided by it.
            bias: Added to the logit of every pair.

        Raises:
            ValueError: If the temperature is not positive.
        """
        super().__init__()
        _check_temperature(temperature)
        self.log_scale = nn.Parameter(torch.tensor([-math.log(temperature)]))
        self.bias = nn.Parameter(torch.tensor([bias]))

    @property
    def scale(self) -> Float[Tensor, " 1"]:
        """The inverse temperature."""
        return self.log_scale.exp()

    def forward(self, a: Embeddings, b: Embeddings) -> Loss:
        """The loss of two modalities."""
        return sigmoid_loss(a, b, self.scale, self.bias)


def _check_temperature(temperature: float) -> None:
    """Raise ValueError unless it is above 0."""
    if temperature <= 0:
        raise ValueError(f"temperature={temperature}: it must be above 0; CLIP starts from 0.07")
