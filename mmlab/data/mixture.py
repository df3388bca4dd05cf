"""Mixtures: the order of samples where batches are drawn from several sources, or from several buckets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64, Int64

from mmlab.data.lanes import LaneDraws, Lanes
from mmlab.data.order import Order, Places
from mmlab.data.randomness import TURNS, random_words

Per = Literal["sample", "batch"]
_ROUND = 2**16
"""Turns after which the succession of ingredients repeats; the finest share is 1 / this."""
_GOLDEN = 0x9E3779B97F4A7C15


class Rota:
    """An endless succession of ingredients in given shares, any part of which is known at once.

    The succession is evenly spread: the k-th of c turns of an ingredient falls at random into the k-th of c
    equal stretches of a round (stratified sampling), so that every stretch holds nearly its share.
    """

    def __init__(self, shares: Sequence[float], *, seed: int) -> None:
        """Deal the turns of a round.

        Args:
            shares: One for each ingredient, positive; only their ratios count. They are met to 1 / 65,536,
                but each has at least one turn in a round.
            seed: Of the random places inside the stretches.
        """
        self.counts = _apportion(np.asarray(shares, dtype=np.float64), _ROUND)
        owner = np.repeat(np.arange(len(self.counts)), self.counts)
        number = np.concatenate([np.arange(count) for count in self.counts])
        jitter = random_words(_ROUND, TURNS, seed).astype(np.float64) / 2.0**64
        dealt = np.argsort((number + jitter) / self.counts[owner], kind="stable")
        self._owner, self._number = owner[dealt], number[dealt]

    def at(self, turn: Int64[np.ndarray, " turns"]) -> tuple[np.ndarray, np.ndarray]:
        """Whose turn it is, and how many turns that ingredient had before, from turn 0 on."""
        rounds, inside = np.divmod(turn, _ROUND)
        owner = self._owner[inside]
        return owner, rounds * self.counts[owner] + self._number[inside]

    def before(self, turn: Int64[np.ndarray, " turns"]) -> Int64[np.ndarray, "turns ingredients"]:
        """How many turns each ingredient has before some turns of the first round."""
        own = [np.flatnonzero(self._owner == ingredient) for ingredient in range(len(self.counts))]
        counts: np.ndarray = np.stack([np.searchsorted(places, turn) for places in own], axis=-1)
        return counts


def _apportion(shares: Float64[np.ndarray, " shares"], total: int) -> Int64[np.ndarray, " shares"]:
    """Whole numbers in the ratio of the shares, by largest remainder; at least 1 each."""
    exact = shares / shares.sum() * total
    counts: np.ndarray = np.maximum(1, np.floor(exact)).astype(np.int64)
    rest = total - int(counts.sum())
    if rest >= 0:
        counts[np.argsort(counts - exact, kind="stable")[:rest]] += 1
    else:  # so many tiny shares were rounded up to 1 that the largest pays
        counts[np.argmax(counts)] += rest
    return counts


@dataclass(frozen=True)
class Ingredient:
    """One of the sets that a mixture draws from."""

    name: str
    draws: LaneDraws
    share: float
    """Of the samples drawn; only the ratios of shares count."""
    batch_size: int
    """Samples of a global batch."""
    first_shard: int = 0
    """Number, among the shards of the whole mixture, of its first."""


class MixedOrder(Order):
    """Global batches drawn from several ingredients, each an endless stream of its own.

    Per batch, all of a step's samples come from one ingredient, whose batch size may be its own. Per sample,
    every lane mixes by itself; lanes stand at places of one rota that are spread by the golden ratio (a
    Kronecker sequence), so that each batch holds nearly the shares. As in
    :class:`mmlab.data.order.TrainingOrder`, everything follows from the step.
    """

    def __init__(self, ingredients: Sequence[Ingredient], *, lanes: Lanes, seed: int, per: Per) -> None:
        """Plan.

        Args:
            ingredients: What to draw from, built with the same lanes.
            lanes: How every ingredient's epoch is cut.
            seed: Of the rota.
            per: Whether a batch is from one ingredient or from all.

        Raises:
            ValueError: A batch size that the lanes do not divide, or per sample and unequal batch sizes.
        """
        self.ingredients = tuple(ingredients)
        self.lanes = lanes
        self.per = per
        self.seed = seed
        sizes = [ingredient.batch_size for ingredient in self.ingredients]
        wrong = [size for size in sizes if size % lanes.ranks != 0]
        if wrong:
            raise ValueError(f"batch size {wrong[0]}: must be divisible by lanes.ranks = {lanes.ranks}")
        if per == "sample" and len(set(sizes)) > 1:
            raise ValueError("mixing per sample needs one batch size: mix per batch")
        self.batch_size = max(sizes)
        self.samples = sum(ingredient.draws.samples for ingredient in self.ingredients)
        turns = [ingredient.share / ingredient.batch_size for ingredient in self.ingredients]
        self.rota = Rota(turns, seed=seed)
        starts = np.arange(lanes.count if per == "sample" else lanes.groups, dtype=np.uint64)
        # Where each lane (or group of lanes) stands on the rota: the fraction of its number x golden ratio.
        self._starts = ((starts * np.uint64(_GOLDEN)) >> np.uint64(48)).astype(np.int64) % _ROUND
        self._before = self.rota.before(self._starts)

    @property
    def steps(self) -> int:
        """Steps in what is called an epoch: those that draw as many samples as there are."""
        sizes = np.array([ingredient.batch_size for ingredient in self.ingredients])
        mean = float(sizes @ self.rota.counts) / _ROUND
        return max(1, round(self.samples / mean))

    @property
    def settings(self) -> dict[str, int | str]:
        """All that decides the order, beside the contents of the shards."""
        parts: dict[str, int | str] = {
            ingredient.name: f"{turns} of {_ROUND} turns, {ingredient.draws.samples} samples by "
            f"{ingredient.batch_size}, {ingredient.draws.unit} {ingredient.draws.window}"
            for ingredient, turns in zip(self.ingredients, self.rota.counts.tolist(), strict=True)
        }
        lanes = self.lanes.text
        return {"batch_size": self.batch_size, "seed": self.seed, "lanes": lanes, "per": self.per, **parts}

    def check(self, ranks: int, workers: int) -> None:
        """Raise ValueError, with the nearest valid values, where ranks or workers do not divide the lanes."""
        smallest = min(ingredient.batch_size for ingredient in self.ingredients)
        self.lanes.check(ranks, workers, batch_size=smallest)

    def places(self, step: int, *, rank: int = 0, ranks: int = 1) -> Places:
        """One rank's share of global batch `step`; see :meth:`mmlab.data.order.Order.places`."""
        lanes = self.lanes.of(step, rank=rank, ranks=ranks)
        turn, group = divmod(step, self.lanes.groups)
        if self.per == "batch":
            owner, number = self.rota.at(np.array([turn + self._starts[group]]))
            ingredient = self.ingredients[int(owner[0])]
            per_lane = ingredient.batch_size // self.lanes.ranks
            first = (int(number[0]) - int(self._before[group, owner[0]])) * per_lane
            lane = np.repeat(lanes, per_lane)
            shard, sample = ingredient.draws.draw(lane, np.tile(first + np.arange(per_lane), len(lanes)))
            shard += ingredient.first_shard
        else:
            per_lane = self.batch_size // self.lanes.ranks
            lane = np.repeat(lanes, per_lane)
            turns = np.tile(turn * per_lane + np.arange(per_lane), len(lanes))
            owner, number = self.rota.at(turns + self._starts[lane])
            number -= self._before[lane, owner]
            shard, sample = np.empty_like(lane), np.empty_like(lane)
            for which in np.unique(owner).tolist():
                own, ingredient = owner == which, self.ingredients[which]
                shard[own], sample[own] = ingredient.draws.draw(lane[own], number[own])
                shard[own] += ingredient.first_shard
        # Places count as if every batch had the largest size: each is then the place of one sample only.
        begin = step * self.batch_size + rank * len(lane)
        return Places(shard, sample, np.arange(begin, begin + len(lane)))
