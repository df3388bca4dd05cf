"""Contrastive losses between two sets of embeddings, exact over all ranks: InfoNCE and sigmoid.

Both take embeddings of two modalities. Rows of equal group are positives of each other, however many there
are; rows of group :data:`~mmlab.batch.NOBODY` take no part. The loss is that of the global batch. Each rank
compares its own rows with everybody's and returns `world_size` times its part of the sum: the mean over
ranks of the returned values is the global loss, and the mean over ranks of the gradients, which DDP and
FSDP take, is its gradient. All ranks must pass the same number of rows. Beside the value stands what each
row adds to it (:class:`~mmlab.objectives.loss.Share`), at no cost.

Memory is linear in a rank's own rows, whatever the global batch: :mod:`~mmlab.objectives.pairs` sums over all
pairs without their matrix and without gathering embeddings. What a rank holds at most is about a dozen times
its rows of one side, visitors and gradients included, three tiles, and the groups of all rows.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mmlab import collectives
from mmlab.batch import NOBODY, Embeddings
from mmlab.objectives.loss import Loss, Share
from mmlab.objectives.pairs import RowSums, Side, sigmoid_sums, softmax_sums

EXCLUDED = -(2.0**100)
"""Added to the logit of a pair that is not compared. Finite, so that a row without any other pair gives no
NaN; a power of two, so that nothing added to it in any order changes it."""


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
    with torch.autocast(a.vector.device.type, enabled=False):
        sums = softmax_sums(*_sides(a, b, scale))
        all_a, all_b = collectives.gather(a.group), collectives.gather(b.group)
        directions = _cross_entropy(a, all_b, sums[0]), _cross_entropy(b, all_a, sums[1])
        matched = collectives.total(torch.stack([share.weight.sum() for share in directions])).clamp(min=1)
        loss = torch.stack([share.loss.sum() for share in directions])
        value = collectives.world_size() * (loss / matched).mean()
    return Loss(value, tuple(share._replace(loss=share.loss.detach()) for share in directions))


def _cross_entropy(queries: Embeddings, candidates: Int64[Tensor, " candidates"], sums: RowSums) -> Share:
    """The loss that :func:`info_nce` states of each query that has a positive, with gradient.

    Args:
        queries: This rank's rows of one side.
        candidates: The groups of the other side on all ranks.
        sums: Of the queries over the candidates.
    """
    known = candidates.sort().values
    behind = torch.searchsorted(known, queries.group, right=True)
    positives = behind - torch.searchsorted(known, queries.group)
    matched = (positives > 0) & (queries.group != NOBODY)
    loss = torch.where(matched, sums.every - sums.positive / positives.clamp(min=1), 0.0)
    return Share(loss, matched.to(loss), queries.place)


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
    taking_part = torch.cat([a.group != NOBODY, b.group != NOBODY])
    rows = collectives.total(taking_part.sum() / 2).clamp(min=1)
    with torch.autocast(a.vector.device.type, enabled=False):
        sums = sigmoid_sums(*_sides(a, b, scale, bias))
        # -log sigmoid(t) = log(1 + exp(t)) - t
        loss = sums.every - sums.positive
        value = collectives.world_size() * loss.sum() / rows
    share = Share(
        loss=torch.cat([loss.detach(), loss.new_zeros(len(b.group))]),
        weight=taking_part / 2,
        place=torch.cat([a.place, b.place]),
    )
    return Loss(value, (share,))


def _sides(
    a: Embeddings,
    b: Embeddings,
    scale: Float[Tensor, " 1"] | float,
    bias: Float[Tensor, " 1"] | float = 0.0,
) -> tuple[Side, Side]:
    """Rows whose dot products are the logits: `scale a.b + bias`, far below all others for rows of NOBODY.

    What is added stands in further columns, against ones on the other side, so that the tiles of the logits
    need no pass for it. Rows are in at least float32. Those of NOBODY are zeros, so that no NaN spreads.
    """
    first, second = _in_full(a), _in_full(b)
    one = torch.ones_like(first[:, 0])
    added = (bias * one).to(one).masked_fill(a.group == NOBODY, EXCLUDED)
    # TensorFloat-32 would round a bias of 10 by up to 0.004: what bfloat16 does not hold goes extra.
    high = added.detach().bfloat16().to(added)
    other = torch.ones_like(second[:, 0])
    excluded = torch.zeros_like(other).masked_fill(b.group == NOBODY, EXCLUDED)
    x = _widened((scale * first).to(first), [added - high, high, one])
    y = _widened(second, [other, other, excluded])
    return Side(x, a.group), Side(y, b.group)


def _in_full(rows: Embeddings) -> Float[Tensor, "rows dim"]:
    """Vectors in at least float32, zeros for those that take no part."""
    vector = rows.vector.to(torch.promote_types(rows.vector.dtype, torch.float32))
    return torch.where((rows.group != NOBODY)[:, None], vector, 0.0)


def _widened(
    vector: Float[Tensor, "rows dim"], columns: list[Float[Tensor, " rows"]]
) -> Float[Tensor, "rows wider"]:
    """Further columns behind the vectors, and zeros up to a multiple of 8, on which GPUs are fast."""
    zeros = [torch.zeros_like(columns[0])] * (-(vector.shape[1] + len(columns)) % 8)
    return torch.cat([vector, torch.stack([*columns, *zeros], dim=1)], dim=1)


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
