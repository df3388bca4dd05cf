"""Texts that come as words, each of which is told of: tokens, which of them begins a word, and its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from random import Random
from typing import Any, NamedTuple

import torch
from jaxtyping import Float64, Int64, Shaped
from torch import Tensor

from mmlab.batch import Modality
from mmlab.data.decode import BrokenMember
from mmlab.data.fields import read_row
from mmlab.data.image import ImageReader
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
    """Words as int64 token ids, with `Input.target` at the first token of each, and the boxes of words.

    Every word has exactly one such token: one that the tokenizer makes nothing of is the unknown token. A
    text that is longer than `max_length` becomes several rows, cut between words; a word that alone is longer
    is cut.
    """

    modality = Modality.TEXT
    has_targets = True

    def __init__(
        self,
        tokenizer: str,
        *,
        field: str = "json.words",
        max_length: int = 128,
        boxes: str | None = None,
        casing: tuple[str, str] | None = None,
    ) -> None:
        """Settings.

        Args:
            tokenizer: Name of an asset, a folder, or a name on the model hub; it must be a fast one.
            field: Where the words of a sample are: an array of strings.
            max_length: Of a row, in tokens, with the special ones.
            boxes: Where the box of each word is (`json.boxes`): left, top, right and bottom, as shares of the
                page's width and height in [0, 1]. Every token of a word has its box. None: none are read.
            casing: Tokens that stand behind a word with a capital letter, and behind one of several letters
                that are all capital: what a tokenizer that makes all letters small does not tell (inline
                casing, Bérard et al. 2019, arXiv:1907.06488). Tokens that the vocabulary has to
                spare, such as `[unused1]` and `[unused2]` of BERT's. None: nothing does.
        """
        self.tokenizer = tokenizer
        self.field = field
        self.max_length = max_length
        self.boxes = boxes
        self.casing = casing

    def __getstate__(self) -> dict[str, Any]:
        # Each process builds its own tokenizer.
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}

    def prepare(self) -> None:
        """Fetch the tokenizer, and see that it can be used so.

        Raises:
            ValueError: There is none, it is a slow one, it does not have the tokens of `casing`, or
                `max_length` leaves no room for a word.
        """
        for token in self.casing or ():
            if self._backend.token_to_id(token) is None:
                raise ValueError(
                    f"data.text.casing: {token!r} is no token of {self.tokenizer!r}: take one that its "
                    "vocabulary has to spare"
                )
        if len(self._around.before) + len(self._around.behind) >= self.max_length:
            raise ValueError(f"data.text.max_length={self.max_length} leaves no room for a word: raise it")

    def beside(self, readers: Sequence[Reader]) -> WordReader:
        """This reader; a picture that is read beside boxes must be one that they fit.

        Raises:
            ValueError: The picture is cropped, padded or mirrored.
        """
        for reader in readers:
            if self.boxes is not None and isinstance(reader, ImageReader) and not reader.keeps_places:
                raise ValueError(
                    f"data.image has fit={reader.fit} and flip={reader.flip}, so data.text.boxes would lie "
                    "elsewhere on the picture: set fit to stretch and flip to 0"
                )
        return self

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
        found = read_row(members, self.field)
        if not all(isinstance(word, str) for word in found):
            raise BrokenMember("a word is not a string")
        if len(found) > _MAX_WORDS:
            raise BrokenMember("too many words")
        return found

    def places(self, members: Mapping[str, bytes], words: int) -> Float64[Tensor, "words numbers"]:
        """The box of each word of a sample; of no numbers where none are read."""
        if self.boxes is None:
            return torch.zeros(words, 0, dtype=torch.float64)
        found = read_row(members, self.boxes)
        if len(found) != words:
            raise BrokenMember(f"{words} words, but {len(found)} boxes")
        for box in found:
            if not isinstance(box, list) or len(box) != 4 or not all(type(x) in (int, float) for x in box):
                raise BrokenMember("a box is not four numbers")
            left, top, right, bottom = box
            if not (0 <= left <= right <= 1 and 0 <= top <= bottom <= 1):  # NaN neither
                raise BrokenMember("a box is not left, top, right, bottom as shares of the page in [0, 1]")
        return torch.tensor(found, dtype=torch.float64).reshape(words, 4)

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
        places = torch.split(self.places(members, len(words)), [len(row) for row in rows])
        return tuple(self._row(row, place) for row, place in zip(rows, places, strict=True))

    def _row(
        self, words: Sequence[Sequence[int]], places: Float64[Tensor, "words numbers"]
    ) -> Shaped[Tensor, "tokens columns"]:
        """Token ids, where a word begins, and its box: then float64, which holds the ids exactly."""
        before, behind = self._around
        ids = [*before, *(token for word in words for token in word), *behind]
        first = [0] * len(before)
        for word in words:
            first += [1] + [0] * (len(word) - 1)
        first += [0] * len(behind)
        row = torch.tensor([ids, first], dtype=torch.int64).T.contiguous()
        if self.boxes is None:
            return row
        of_tokens = places.repeat_interleave(torch.tensor([len(word) for word in words]), dim=0)
        around = [places.new_zeros(len(tokens), 4) for tokens in (before, behind)]
        return torch.cat([row.double(), torch.cat([around[0], of_tokens, around[1]])], dim=1)

    def encode(self, word: str) -> list[int]:
        """Token ids of a word that stands behind others, one at least."""
        clean = word[:_LETTERS].encode("utf-8", "replace").decode("utf-8")
        return (self._ids(self._space + clean) or [self._unknown]) + self._case(clean)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    @cached_property
    def _space(self) -> str:
        """What stands before a word: by it byte-pair tokenizers tell that one begins, while others drop it.

        A tokenizer that puts a space before every text itself would make a token of a second one.
        """
        alone, spaced, behind = self._ids("a"), self._ids(" a"), self._ids("b a")
        return "" if spaced != alone and behind == self._ids("b") + alone else " "

    def _case(self, word: str) -> list[int]:
        """The token that tells of the capital letters of a word, if any does."""
        if self.casing is None or word == word.lower():
            return []
        letters = sum(letter.isalpha() for letter in word)
        token: int = self._backend.token_to_id(self.casing[letters > 1 and word == word.upper()])
        return [token]

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

    def blank(self) -> Shaped[Tensor, "one columns"]:
        """One token of padding, which begins no word and stands nowhere."""
        row: Int64[Tensor, "one two"] = torch.tensor([[self._pad, 0]])
        return row if self.boxes is None else torch.cat([row.double(), torch.zeros(1, 4).double()], dim=1)

    def stack(self, rows: Sequence[Tensor]) -> Rows:
        """Pad on the right."""
        ids = pad([row[:, 0].long() for row in rows], self._pad)
        first = pad([row[:, 1] for row in rows]).data.bool()
        box = None if self.boxes is None else pad([row[:, 2:].float() for row in rows]).data
        return Rows(ids.data, ids.length, first, box)
