"""Texts that come as words, each of which is told of: tokens, and which of them begins a word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from random import Random
from typing import Any, NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from mmlab.batch import Modality
from mmlab.data.decode import BrokenMember
from mmlab.data.fields import read_field
from mmlab.data.reader import Reader, Rows, pad
from mmlab.data.text import load_tokenizer

_LETTERS = 1000
"""Of a word are tokenized; what is longer is no word."""
_MAX_WORDS = 100_000
"""Of a sample."""


class _Around(NamedTuple):
    """The special tokens before and behind a text."""

    before: list[int]
    behind: list[int]


class WordReader(Reader):
    """Words as int64 token ids, with `Input.target` at the first token of each.

    Every word has exactly one such token: one that the tokenizer makes nothing of is the unknown token. A
    text that is longer than `max_length` becomes several rows, cut between words; a word that alone is longer
    is cut.
    """

    modality = Modality.TEXT
    has_targets = True

    def __init__(self, tokenizer: str, *, field: str = "json.words", max_length: int = 128) -> None:
        """Settings.

        Args:
            tokenizer: Name of an asset, a folder, or a name on the model hub; it must be a fast one.
            field: Where the words of a sample are: an array of strings.
            max_length: Of a row, in tokens, with the special ones.
        """
        self.tokenizer = tokenizer
        self.field = field
        self.max_length = max_length

    def __getstate__(self) -> dict[str, Any]:
        # Each process builds its own tokenizer.
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}

    def prepare(self) -> None:
        """Fetch the tokenizer, and see that it can be used so.

        Raises:
            ValueError: There is none, it is a slow one, or `max_length` leaves no room for a word.
        """
        if len(self._around.before) + len(self._around.behind) >= self.max_length:
            raise ValueError(f"data.text.max_length={self.max_length} leaves no room for a word: raise it")

    def describe(self) -> str:
        """The field that it reads."""
        return self.field

    def finds(self, members: Mapping[str, bytes]) -> bool:
        """Whether the sample has words, or something unreadable in their place."""
        try:
            return len(self.words(members)) > 0
        except BrokenMember:
            return True

    def words(self, members: Mapping[str, bytes]) -> list[str]:
        """The words of a sample."""
        found = read_field(members, self.field)
        if not all(isinstance(word, str) for word in found):
            raise BrokenMember("a word is not a string")
        if len(found) > _MAX_WORDS:
            raise BrokenMember("too many words")
        return found

    def read(self, members: Mapping[str, bytes], rng: Random | None) -> tuple[Tensor, ...]:
        """The words, in one row or several; none where there are none."""
        words = self.words(members)
        if not words:
            return ()
        before, behind = self._around
        room = self.max_length - len(before) - len(behind)
        rows: list[list[list[int]]] = [[]]
        used = 0
        for ids in map(self.encode, words):
            ids = ids[:room]
            if used + len(ids) > room:
                rows.append([])
                used = 0
            rows[-1].append(ids)
            used += len(ids)
        return tuple(self._row(row) for row in rows)

    def _row(self, words: Sequence[Sequence[int]]) -> Int64[Tensor, "tokens two"]:
        before, behind = self._around
        ids = [*before, *(token for word in words for token in word), *behind]
        first = [0] * len(before)
        for word in words:
            first += [1] + [0] * (len(word) - 1)
        first += [0] * len(behind)
        return torch.tensor([ids, first], dtype=torch.int64).T.contiguous()

    def encode(self, word: str) -> list[int]:
        """Token ids of a word that stands behind others, one at least."""
        clean = word[:_LETTERS].encode("utf-8", "replace").decode("utf-8")
        # Byte-pair tokenizers tell by the space that a word begins; others drop it.
        ids: list[int] = self._backend.encode(f" {clean}", add_special_tokens=False).ids
        return ids or [self._unknown]

    @cached_property
    def _built(self) -> Any:
        built = load_tokenizer(self.tokenizer)
        if getattr(built, "backend_tokenizer", None) is None:
            raise ValueError(
                f"data.text.tokenizer={self.tokenizer!r} is a slow tokenizer: give one with a tokenizer.json"
            )
        built.backend_tokenizer.no_padding()
        built.backend_tokenizer.no_truncation()
        # What stands in the data cannot pass for a special token.
        built.backend_tokenizer.encode_special_tokens = True
        return built

    @property
    def _backend(self) -> Any:
        return self._built.backend_tokenizer

    @cached_property
    def _unknown(self) -> int:
        """What stands for a word of which the tokenizer makes nothing."""
        for token in (self._built.unk_token_id, self._built.pad_token_id, self._built.eos_token_id):
            if token is not None:
                return int(token)
        return 0

    @cached_property
    def _pad(self) -> int:
        token = self._built.pad_token_id
        return self._unknown if token is None else int(token)

    @cached_property
    def _around(self) -> _Around:
        encoding = self._backend.encode("a")
        special = encoding.special_tokens_mask
        start = special.index(0)
        stop = len(special) - special[::-1].index(0)
        return _Around(encoding.ids[:start], encoding.ids[stop:])

    def blank(self) -> Int64[Tensor, "one two"]:
        """One token of padding, which begins no word."""
        return torch.tensor([[self._pad, 0]])

    def stack(self, rows: Sequence[Tensor]) -> Rows:
        """Pad on the right."""
        ids, length, _ = pad([row[:, 0] for row in rows], self._pad)
        return Rows(ids, length, pad([row[:, 1] for row in rows]).data.bool())
