"""Users, what they chose before, and items, as numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import torch
from torch import Tensor

from mmlab.batch import NOBODY, Modality
from mmlab.data.decode import BrokenMember
from mmlab.data.fields import read_field
from mmlab.data.reader import Reader, Rows, pad

_FIELDS = ("user", "item", "history")
_LARGEST = 2**31
_LONGEST = 2**20
"""Items of a history."""


class InteractionReader(Reader):
    """A row of a sample is a user, an item and the user's history, int64; see `mmlab.batch.USER`.

    Every sample of which anything is said has one: training samples have all three, those of evaluation an
    item, or a user with a history. A history can stand for a user without a number.
    """

    modality = Modality.SIGNAL

    def __init__(self, member: str = "json") -> None:
        """Settings.

        Args:
            member: JSON member that holds `user`, `item` (numbers from 0) and `history` (an array of items,
                the latest last), as the sources of recommendation write them.
        """
        self.member = member

    def describe(self) -> str:
        """The fields that it reads."""
        return ", ".join(f"{self.member}.{name}" for name in _FIELDS)

    def finds(self, members: Mapping[str, bytes]) -> bool:
        """Whether the sample names a user, an item or a history."""
        try:
            return any(self._values(members, name) for name in _FIELDS)
        except BrokenMember:
            return True

    def read(self, members: Mapping[str, bytes], rng: Random | None) -> tuple[Tensor, ...]:
        """The row, or nothing."""
        user, item = (self._one(members, name) for name in ("user", "item"))
        history = [_number(value, "history") for value in self._values(members, "history")]
        if user == item == NOBODY and not history:
            return ()
        if len(history) > _LONGEST:
            raise BrokenMember("history too long")
        return (torch.tensor([user, item, *history], dtype=torch.int64),)

    def blank(self) -> Tensor:
        """Nobody, and nothing."""
        return torch.tensor([NOBODY, NOBODY])

    def stack(self, rows: Sequence[Tensor]) -> Rows:
        """Pad with what is no item."""
        return pad(rows, NOBODY)

    def _one(self, members: Mapping[str, bytes], name: str) -> int:
        values = self._values(members, name)
        if len(values) > 1:
            raise BrokenMember(f"{name} is no number")
        return _number(values[0], name) if values else NOBODY

    def _values(self, members: Mapping[str, bytes], name: str) -> list[Any]:
        return read_field(members, f"{self.member}.{name}")


def _number(value: Any, name: str) -> int:
    if type(value) is not int or not 0 <= value < _LARGEST:
        raise BrokenMember(f"{name} is no number from 0")
    return value
