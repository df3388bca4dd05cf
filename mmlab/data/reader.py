"""What every modality's reader is: members of a sample in, tensors and their padded stack out."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from random import Random
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from mmlab.batch import Modality
from mmlab.data.fields import EACH, read_field


class Rows(NamedTuple):
    """Rows of one modality, padded to one size."""

    data: Shaped[Tensor, "rows *rest"]
    length: Int64[Tensor, " rows"] | None
    """Valid steps of each row; None where rows have one size."""
    target: Bool[Tensor, "rows steps"] | None = None
    """See :attr:`mmlab.batch.Input.target`."""
    box: Float[Tensor, "rows steps 4"] | None = None
    """See :attr:`mmlab.batch.Input.box`."""


class Reader(ABC):
    """Reads one modality of a sample. Built in one process, used in others: it must pickle."""

    modality: Modality
    steps_per_unit: float = 1.0
    """Steps of a row in what people count its length in: tokens, seconds, steps."""
    encoded: ClassVar[bool] = False
    """Whether rows are what the encoder gave once; see :attr:`mmlab.batch.Input.encoded`."""
    has_targets: ClassVar[bool] = False
    """Whether rows say which of their tokens are told of, which features of them do not keep."""
    settings_of_use: ClassVar[frozenset[str]] = frozenset()
    """Settings that choose among rows which cached features hold all of, so features serve any of them."""

    @property
    def raw(self) -> Reader:
        """What reads the members themselves: this reader, unless it stands in for another."""
        return self

    @property
    def identity(self) -> str:
        """Class and settings: what decides, with the members, what is read."""
        settings = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return json.dumps({"class": type(self).__name__, **settings}, sort_keys=True, default=str)

    def prepare(self) -> None:  # noqa: B027  (most readers need nothing)
        """Fetch what reading needs; called in one process of a node before training."""

    @abstractmethod
    def describe(self) -> str:
        """Where this reader looks, for messages: extensions or fields."""

    @abstractmethod
    def finds(self, members: Mapping[str, bytes]) -> bool:
        """Whether a sample has this modality at all, broken or not."""

    @abstractmethod
    def read(self, members: Mapping[str, bytes], rng: Random | None) -> tuple[Tensor, ...]:
        """The rows of one sample.

        Args:
            members: Bytes of the sample's members by extension, in lower case.
            rng: The sample's own random numbers. Only `rng.random()` may be called: Python promises that it
                stays the same from release to release. None: evaluation, nothing is drawn.

        Returns:
            One row or several; none where the sample lacks the modality.

        Raises:
            BrokenMember: A member is there but cannot be read.
        """

    def asked(self, members: Mapping[str, bytes]) -> Mapping[str, bytes]:
        """More members, which only this reader can tell: what evaluation asks of a sample."""
        return {}

    def count(self, members: Mapping[str, bytes], *, training: bool) -> int:
        """Rows that :meth:`read` gives of a medium, told by the members' names."""
        return int(self.finds(members))

    def beside(self, readers: Sequence[Reader]) -> Reader:
        """This reader, told which others read the same samples."""
        return self

    def check(self, rows: Mapping[Modality, Sequence[Tensor]]) -> None:  # noqa: B027  (most look at one)
        """Raise BrokenMember where the rows of a sample do not go together."""

    def steps(self, members: Mapping[str, bytes]) -> int:
        """The most steps that a row of a sample can have; 0 where it has none.

        Raises:
            BrokenMember: As for :meth:`read`.
        """
        return max((len(row) for row in self.read(members, None)), default=0)

    @abstractmethod
    def blank(self) -> Tensor:
        """The row that stands in for an absent sample."""

    @abstractmethod
    def stack(self, rows: Sequence[Tensor]) -> Rows:
        """Put rows, at least one, into one tensor."""


def with_asked(
    members: Mapping[str, bytes], fields: Iterable[str], readers: Iterable[Reader]
) -> Mapping[str, bytes]:
    """The members of a sample, and where one of the fields needs it the turn that evaluation asks."""
    if not any(field.startswith(EACH) for field in fields):
        return members
    for reader in readers:
        members = {**members, **reader.asked(members)}
    return members


def read_asked(members: Mapping[str, bytes], field: str, readers: Iterable[Reader]) -> list[Any]:
    """The values of a field of a sample, or of the turn that evaluation asks; see :func:`read_field`."""
    return read_field(with_asked(members, [field], readers), field)


def pick(count: int, rng: Random) -> int:
    """A number below `count`, each as likely."""
    return min(int(rng.random() * count), count - 1)


def pad(rows: Sequence[Tensor], value: int = 0) -> Rows:
    """Stack sequences [steps, ...] of different length, padded on the right."""
    length = torch.tensor([len(row) for row in rows])
    data = rows[0].new_full((len(rows), int(length.max()), *rows[0].shape[1:]), value)
    for target, row in zip(data, rows, strict=True):
        target[: len(row)] = row
    return Rows(data, length)
