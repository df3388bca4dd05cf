"""Words with two entities among them that are marked: what holds between the first and the second?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor

from mmlab.data.decode import BrokenMember
from mmlab.data.fields import read_field
from mmlab.data.words import WordReader

_MARKERS = 4


class _Entity(NamedTuple):
    """The place of its first word, and of the word behind its last."""

    start: int
    stop: int


class EntityPairReader(WordReader):
    """Words as int64 token ids in one row, with markers around two entities, the head and the tail.

    `Input.target` is at the first token of both start markers, whose states tell the relation (Baldini Soares
    et al. 2019, arXiv:1906.03158, section 3.2, entity markers, entity start). The two tokens differ, so
    whatever reads them knows which is the head's, though either may stand first in the text.

    A marker is read as a word, unless it would be several tokens and the tokenizer knows it as one, such as
    `[unused1]` of BERT's. Punctuation, the default, has been learned already (Zhou and Chen 2021,
    arXiv:2102.01373).

    What is longer than `max_length` is cut around the entities: their beginnings stay, then the rest of them,
    then the words that are nearest to either.
    """

    def __init__(
        self,
        tokenizer: str,
        *,
        field: str = "json.words",
        head: str = "json.head",
        tail: str = "json.tail",
        markers: Sequence[str] = ("@", "@", "#", "#"),
        max_length: int = 128,
    ) -> None:
        """Settings.

        Args:
            tokenizer: Name of an asset, a folder, or a name on the model hub; it must be a fast one.
            field: Where the words of a sample are: an array of strings.
            head: Where the place of the head is: an array of its first word and the word behind its last.
            tail: That of the tail.
            markers: What stands before and behind the head, and before and behind the tail.
            max_length: Of a row, in tokens, with the special ones.

        Raises:
            ValueError: There are more or fewer markers than four.
        """
        super().__init__(tokenizer, field=field, max_length=max_length)
        if len(markers) != _MARKERS:
            raise ValueError(
                f"data.text.markers has {len(markers)}, but {_MARKERS} are needed: before and behind the "
                "head, before and behind the tail"
            )
        self.head = head
        self.tail = tail
        self.markers = tuple(markers)

    def prepare(self) -> None:
        """Fetch the tokenizer, and see that it can be used so.

        Raises:
            ValueError: As a `WordReader`; the start markers are one token, or leave no room for two words.
        """
        super().prepare()
        opening, _, other, _ = self._marks
        if opening[0] == other[0]:
            raise ValueError(
                f"data.text.markers: {self.markers[0]!r} and {self.markers[2]!r} begin with the same token "
                f"for {self.tokenizer!r}: choose markers that differ"
            )
        if self._room < 2:
            raise ValueError(
                f"data.text.max_length={self.max_length} leaves no room for two words and their markers: "
                "raise it"
            )

    def describe(self) -> str:
        """The fields that it reads."""
        return f"{self.field}, {self.head}, {self.tail}"

    def read(self, members: Mapping[str, bytes], rng: Random | None) -> tuple[Tensor, ...]:
        """The words with their markers, in one row; none where there are no words."""
        words = self.words(members)
        if not words:
            return ()
        entities = [self._entity(members, field, len(words)) for field in (self.head, self.tail)]
        starts = {entity.start for entity in entities}
        ids = [self.encode(word) for word in words]
        for place in starts:  # so that the beginnings of both always have room
            ids[place] = ids[place][: self._room // 2]
        kept = _nearest([len(word) for word in ids], entities, self._room)
        pieces: list[tuple[list[int], bool]] = []
        for place in range(len(words) + 1):
            pieces += [(self._marks[mark], mark % 2 == 0) for mark in _marks_at(place, entities)]
            if place in kept:
                pieces.append((ids[place], False))
        before, behind = self._around
        whole = [(before, False), *pieces, (behind, False)]
        tokens = [token for piece, _ in whole for token in piece]
        first = [int(told and number == 0) for piece, told in whole for number in range(len(piece))]
        return (torch.tensor([tokens, first], dtype=torch.int64).T.contiguous(),)

    def _entity(self, members: Mapping[str, bytes], field: str, words: int) -> _Entity:
        found = read_field(members, field)
        if len(found) != 2 or not all(type(place) is int for place in found):
            raise BrokenMember(f"{field} is not the places of a first word and of the one behind a last")
        entity = _Entity(*found)
        if not 0 <= entity.start < entity.stop <= words:
            raise BrokenMember(f"{field} is {list(entity)}, of {words} words")
        return entity

    @cached_property
    def _marks(self) -> list[list[int]]:
        """Tokens of each marker."""
        found = []
        for marker in self.markers:
            ids, known = self.encode(marker), self._backend.token_to_id(marker)
            found.append(ids if known is None or len(ids) == 1 else [known])
        return found

    @property
    def _room(self) -> int:
        """Tokens of a row that words may have."""
        before, behind = self._around
        return self.max_length - len(before) - len(behind) - sum(map(len, self._marks))


def _marks_at(place: int, entities: Sequence[_Entity]) -> list[int]:
    """Numbers of the markers that stand before a word: what ends does so before anything begins."""
    ends = [2 * number + 1 for number, entity in enumerate(entities) if entity.stop == place]
    return ends + [2 * number for number, entity in enumerate(entities) if entity.start == place]


def _nearest(lengths: Sequence[int], entities: Sequence[_Entity], room: int) -> set[int]:
    """Places of the words that are kept.

    Args:
        lengths: Tokens of each word.
        entities: The first words of both have room.
        room: Tokens in all.
    """

    def order(place: int) -> tuple[int, int]:
        inside = [place - one.start for one in entities if one.start <= place < one.stop]
        if inside:
            return (min(1, min(inside)), min(inside))
        return (2, min(max(one.start - place, place - one.stop + 1) for one in entities))

    kept: set[int] = set()
    for place in sorted(range(len(lengths)), key=order):
        if lengths[place] > room:
            break
        room -= lengths[place]
        kept.add(place)
    return kept
