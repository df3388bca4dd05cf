"""Sampled softmax and BPR against formulas in float64, on one rank and on two."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gloo_ranks import Ranks

from mmlab.batch import NOBODY, Embeddings
from mmlab.objectives.ranking import BayesianRanking, RankingObjective, SampledSoftmax

ITEMS = [3, 7, 3, 9, NOBODY, 1]
"""Two users chose item 3; the fifth sample is no pair."""
CHOOSERS = [5, 6, 7, 5, NOBODY, 8]
"""User 5 chose item 3, and then item 9."""
HISTORY = [[7, NOBODY], [NOBODY, NOBODY], [1, 7], [3, NOBODY], [NOBODY, NOBODY], [NOBODY, NOBODY]]


def sides(rows: slice) -> tuple[Embeddings, Embeddings, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    user, item = torch.nn.functional.normalize(torch.randn(2, 6, 5, generator=generator), dim=-1)
    group, place = torch.tensor(ITEMS), torch.arange(6)
    share = torch.rand(6, generator=generator).log()
    share[2] = share[0]
    made = [
        Embeddings(vector[rows].clone().requires_grad_(), group[rows], place[rows]) for vector in (user, item)
    ]
    more = {"chooser": torch.tensor(CHOOSERS), "log_share": share, "history": torch.tensor(HISTORY)}
    return made[0], made[1], {name: values[rows] for name, values in more.items()}


def by_hand(kind: str) -> float:
    """The mean over users that chose something, in loops."""
    user, item, more = sides(slice(0, 6))
    losses = []
    for u, chosen in enumerate(ITEMS):
        if chosen == NOBODY:
            continue
        own = {one for one, user_of in zip(ITEMS, CHOOSERS, strict=True) if user_of == CHOOSERS[u]}
        taboo = {NOBODY, *own, *HISTORY[u]}
        others = [j for j, one in enumerate(ITEMS) if one not in taboo]
        score = 10 * (user.vector[u].double() @ item.vector.double().T).detach().numpy()
        if kind == "softmax":
            s = score - more["log_share"].double().numpy()
            losses.append(-s[u] + np.log(sum(np.exp(s[j]) for j in [u, *others])))
        else:
            losses.append(np.mean([np.log1p(np.exp(score[j] - score[u])) for j in others]))
    return float(np.mean(losses))


def make(kind: str) -> RankingObjective:
    return SampledSoftmax() if kind == "softmax" else BayesianRanking()


@pytest.mark.parametrize("kind", ["softmax", "bpr"])
def test_as_counted_one_by_one(kind: str) -> None:
    user, item, more = sides(slice(0, 6))
    loss = make(kind)(user, item, **more)
    assert loss.value.item() == pytest.approx(by_hand(kind), rel=1e-5)
    loss.value.backward()
    assert user.vector.grad is not None
    assert (user.vector.grad[4] == 0).all(), "nobody moves"
    assert user.vector.grad.isfinite().all()


def on_rank(kind: str) -> tuple[float, list[float]]:
    rank = torch.distributed.get_rank()
    user, item, more = sides(slice(3 * rank, 3 * rank + 3))
    loss = make(kind)(user, item, **more)
    loss.value.backward()
    assert item.vector.grad is not None
    return loss.value.item(), item.vector.grad.flatten().tolist()


@pytest.mark.parametrize("kind", ["softmax", "bpr"])
def test_two_ranks_are_one(kind: str, ranks: Ranks) -> None:
    user, item, more = sides(slice(0, 6))
    loss = make(kind)(user, item, **more)
    loss.value.backward()
    answers = ranks(on_rank, kind)
    assert np.mean([value for value, _ in answers]) == pytest.approx(loss.value.item(), rel=1e-5)
    assert item.vector.grad is not None
    # The mean over ranks of the gradients is that of the global loss.
    found = torch.tensor([grad for _, grads in answers for grad in grads]) / 2
    torch.testing.assert_close(found, item.vector.grad.flatten(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["softmax", "bpr"])
def test_a_batch_without_pairs_costs_nothing(kind: str) -> None:
    user, item, more = sides(slice(4, 5))
    loss = make(kind)(user, item, **more)
    loss.value.backward()
    assert loss.value.item() == 0
    assert user.vector.grad is not None


def test_temperatures_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"temperature=0\.001: it must be at least"):
        SampledSoftmax(0.001)
