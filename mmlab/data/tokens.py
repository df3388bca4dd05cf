"""The tokens of a sample as members of a shard: which rows, how they are packed, how they are read.

- `about.tokens.json`: for each modality a list of variants, each the list of its rows: how many tokens a row
  has, or why it cannot be read. `{"text": [[7, 9]], "audio": [["cannot decode"]]}`. Every sample has this
  member, and it comes first.
- `<modality>.tokens.npy`: the tokens of all these rows, one after the other, [tokens, dim]; without padding.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from random import Random
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from mmlab.batch import Modality
from mmlab.data.audio import AudioReader
from mmlab.data.decode import BrokenMember
from mmlab.data.reader import Reader, Rows, pad, pick
from mmlab.data.signal import read_array_header
from mmlab.data.text import TextReader

ABOUT = "about.tokens.json"
Precision = Literal["float16", "float32"]
Row = int | str
"""Tokens of a row, or why it cannot be read."""
_TYPES = (np.dtype("<f2"), np.dtype("<f4"))


def member_name(modality: Modality) -> str:
    """The member that holds the tokens of a modality."""
    return f"{modality}.tokens.npy"


def pack(
    variants: Mapping[Modality, list[list[Row]]], tokens: Mapping[Modality, Shaped[np.ndarray, "tokens dim"]]
) -> dict[str, bytes]:
    """The members of one sample.

    Args:
        variants: For each modality that the sample has, its variants and their rows.
        tokens: Those of all rows of a modality, one after the other.
    """
    about = {modality.value: rows for modality, rows in variants.items()}
    members = {ABOUT: json.dumps(about, separators=(",", ":")).encode()}
    for modality, array in tokens.items():
        if len(array) > 0:
            file = io.BytesIO()
            np.save(file, np.ascontiguousarray(array), allow_pickle=False)
            members[member_name(modality)] = file.getvalue()
    return members


def every_row(reader: Reader, members: Mapping[str, bytes], rng: Random | None) -> list[Tensor | str]:
    """All rows of a sample that its reader may choose from: every caption, every sound.

    Args:
        reader: Of the raw members.
        members: Of the sample.
        rng: For augmentation; None: as in evaluation.

    Returns:
        Rows; in place of one that cannot be read, the reason.
    """
    try:
        if isinstance(reader, TextReader):
            return [reader.encode(caption) for caption in reader.captions(members)]
        if isinstance(reader, AudioReader):
            return [_sound(reader, members[name], rng) for name in reader.matching(members)]
        return list(reader.read(members, rng))
    except BrokenMember as error:
        return [str(error)]


def _sound(reader: AudioReader, data: bytes, rng: Random | None) -> Tensor | str:
    try:
        return reader.decode(data, 0.0 if rng is None else rng.random())
    except BrokenMember as error:
        return str(error)


class FeatureReader(Reader):
    """Reads tokens instead of what an encoder makes them of; chooses among rows as the raw reader does."""

    encoded: ClassVar[bool] = True

    def __init__(self, reader: Reader, *, dim: int, precision: Precision) -> None:
        """Stand in for a reader.

        Args:
            reader: Of the raw members.
            dim: Size of a token.
            precision: What tokens are stored in.
        """
        self._raw = reader
        self.modality = reader.modality
        self.dim = dim
        self.dtype: torch.dtype = getattr(torch, precision)
        # These draw one of several in training; the others give all that they have.
        self.choice = isinstance(reader, TextReader | AudioReader)
        self.every = getattr(reader, "every", True)
        self.member = member_name(reader.modality)

    @property
    def raw(self) -> Reader:
        """The reader of the raw members: groups by caption need them still."""
        return self._raw

    def describe(self) -> str:
        """The member that it reads."""
        return self.member

    def finds(self, members: Mapping[str, bytes]) -> bool:
        """Whether the sample has this modality, broken or not."""
        return len(self._variants(members)) > 0

    def read(self, members: Mapping[str, bytes], rng: Random | None) -> tuple[Tensor, ...]:
        """The tokens [tokens, dim] of the rows that the raw reader would give; none where it gives none.

        Raises:
            BrokenMember: The features are missing, or the raw member could not be read when they were made.
        """
        variants = self._variants(members)
        if not variants:
            return ()
        number = 0 if rng is None or len(variants) == 1 else pick(len(variants), rng)
        rows = range(len(variants[number]))
        if self.choice and rng is not None:
            rows = rows[(chosen := pick(len(rows), rng)) : chosen + 1]
        elif self.choice and not self.every:
            rows = rows[:1]
        spans = _spans(variants)[number]
        return tuple(self._row(members, spans[row]) for row in rows)

    def _row(self, members: Mapping[str, bytes], span: slice | str) -> Float[Tensor, "tokens dim"]:
        if isinstance(span, str):
            raise BrokenMember(span)
        if self.member not in members:
            raise BrokenMember("features missing")
        tokens = read_tokens(members[self.member], self.dim)
        if span.stop > len(tokens):
            raise BrokenMember("features cut off")
        row = torch.from_numpy(tokens[span].copy()).to(self.dtype)
        if not row.isfinite().all():
            raise BrokenMember("features not finite")
        return row

    def _variants(self, members: Mapping[str, bytes]) -> list[list[Row]]:
        """The rows of each variant; none where the sample lacks the modality."""
        if ABOUT not in members:
            raise BrokenMember("features missing")
        try:
            about = json.loads(members[ABOUT])
        except (ValueError, RecursionError):
            about = None
        variants: Any = about.get(self.modality.value, []) if isinstance(about, dict) else None
        if not isinstance(variants, list) or not all(map(_is_variant, variants)):
            raise BrokenMember("features damaged")
        return variants

    def blank(self) -> Float[Tensor, "1 dim"]:
        """One token of zeros."""
        return torch.zeros(1, self.dim, dtype=self.dtype)

    def stack(self, rows: Sequence[Tensor]) -> Rows:
        """Pad with zeros."""
        return pad(rows)


def _is_variant(rows: Any) -> bool:
    if not isinstance(rows, list) or not rows:
        return False
    return all(isinstance(row, str) or (type(row) is int and row > 0) for row in rows)


def _spans(variants: Sequence[Sequence[Row]]) -> list[list[slice | str]]:
    """Where each row's tokens stand in the array of the sample."""
    spans: list[list[slice | str]] = []
    start = 0
    for variant in variants:
        spans.append([])
        for row in variant:
            spans[-1].append(row if isinstance(row, str) else slice(start, start + row))
            start += 0 if isinstance(row, str) else row
    return spans


_header = lru_cache(maxsize=1024)(read_array_header)
"""Of many rows one is like another, and reading it takes longer than all the rest."""


def read_tokens(data: bytes, dim: int) -> Shaped[np.ndarray, "tokens dim"]:
    """The array of a `.tokens.npy` member, a view of its bytes; nothing is unpickled.

    Raises:
        BrokenMember: It is no float16 or float32 array [tokens, dim], or cut off.
    """
    header = _header(data[: min(10 + int.from_bytes(data[8:10], "little"), 4096)])
    count = header.shape[0] if len(header.shape) == 2 else -1
    if header.dtype not in _TYPES or header.fortran or header.shape != (count, dim):
        raise BrokenMember("features of another shape")
    if count * dim * header.dtype.itemsize > len(data) - header.size:
        raise BrokenMember("features cut off")
    return np.frombuffer(data, header.dtype, count=count * dim, offset=header.size).reshape(count, dim)
