"""Soups: the average of the weights of several runs that started from the same weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

from mmlab.runs.checkpoint import Weights


class Soup(NamedTuple):
    """An average, and what is in it."""

    weights: Weights
    members: list[int]
    """Numbers of the runs, in the order in which they were added."""
    score: float


def average(ingredients: Sequence[Weights]) -> Weights:
    """The mean of each weight, taken in float64 (Wortsman et al. 2022, arXiv:2203.05482, uniform soup).

    What is no floating-point number (a count of batches) is the first one's.

    Args:
        ingredients: At least one, alike; see :func:`check_alike`.
    """
    first = ingredients[0]
    state = {}
    for name, value in first.state.items():
        if value.is_floating_point():
            total = torch.zeros_like(value, dtype=torch.float64)
            for weights in ingredients:
                total += weights.state[name]
            value = (total / len(ingredients)).to(value.dtype)
        state[name] = value
    return Weights(state, first.bases, max(weights.stage for weights in ingredients))


def check_alike(ingredients: Mapping[str, Weights]) -> None:
    """Raise ValueError unless all hold the same tensors, trained beside the same pretrained weights.

    Args:
        ingredients: By what the user calls them.
    """
    (name, first), *others = ingredients.items()
    for other, weights in others:
        changed = sorted(path for path in first.bases if weights.bases.get(path) != first.bases[path])
        if changed or weights.bases.keys() != first.bases.keys():
            where = f" of {changed[0]}" if changed else ""
            raise ValueError(f"{name} and {other} were trained beside other pretrained weights{where}")
        shapes, own = ({n: t.shape for n, t in w.state.items()} for w in (weights, first))
        if shapes != own:
            differing = sorted(n for n in {**own, **shapes} if own.get(n) != shapes.get(n))
            raise ValueError(
                f"{name} and {other} hold other tensors ({differing[0]}, ...): only runs of one model and "
                "one adaptation can be averaged"
            )


def greedy(
    ingredients: Sequence[Weights],
    score: Callable[[Weights], float],
    *,
    scores: Sequence[float],
    higher_is_better: bool = True,
) -> Soup:
    """Add runs one by one, from the best, and keep what does not make the average worse (as above, recipe 1).

    Args:
        ingredients: At least one, alike.
        score: Measures weights on the validation split.
        scores: Of each run alone.
        higher_is_better: Which end is good.
    """
    sign = 1 if higher_is_better else -1
    order = sorted(range(len(ingredients)), key=lambda n: -sign * scores[n])
    soup = Soup(ingredients[order[0]], [order[0]], scores[order[0]])
    for number in order[1:]:
        members = [*soup.members, number]
        weights = average([ingredients[n] for n in members])
        found = score(weights)
        if sign * found >= sign * soup.score:
            soup = Soup(weights, members, found)
    return soup
