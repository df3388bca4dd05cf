"""Things that are kept for a while: those used last."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

_V = TypeVar("_V")


class Recent(Generic[_V]):
    """What was used last, by number, up to a total cost."""

    def __init__(self, limit: int, cost: Callable[[_V], int], drop: Callable[[_V], None]) -> None:
        """Settings.

        Args:
            limit: Total cost of what is kept.
            cost: Of one thing.
            drop: Called with what is no longer kept.
        """
        self.limit, self.cost, self.drop = limit, cost, drop
        self.kept: OrderedDict[int, _V] = OrderedDict()
        self.total = 0

    def get(self, number: int, make: Callable[[int], _V]) -> _V:
        """The thing of a number, made where it is not kept."""
        if number in self.kept:
            self.kept.move_to_end(number)
            return self.kept[number]
        value = make(number)
        self.kept[number] = value
        self.total += self.cost(value)
        while self.total > self.limit and len(self.kept) > 1:
            _, oldest = self.kept.popitem(last=False)
            self.total -= self.cost(oldest)
            self.drop(oldest)
        return value

    def clear(self) -> None:
        """Drop everything."""
        while self.kept:
            self.drop(self.kept.popitem()[1])
        self.total = 0
