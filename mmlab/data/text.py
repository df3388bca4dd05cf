"""Captions and other text -> token ids of a Hugging Face tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from mmlab.batch import Modality
from mmlab.data.decode import BrokenMember
from mmlab.data.fields import read_field
from mmlab.data.reader import Reader, Rows, pad, pick

_LETTERS = 64
"""Of a text, for each token to keep, are looked at: tokenizing megabytes to keep a line takes minutes."""
_MAX_CAPTIONS = 1000
"""Of a sample."""
TOKENIZERS = "transformers.models.auto.tokenization_auto"
"""What takes long to import when a tokenizer is built."""


def load_tokenizer(name: str) -> Any:
    """Build a tokenizer from the name of an asset, a folder, or a name on the model hub.

    Raises:
        ValueError: It is none of these, or cannot be read.
    """
    # Deferred: readers of other modalities need none of these, and importing them takes seconds.
    from transformers import AutoTokenizer

    from mmlab.assets import catalog

    folder = Path(name) if Path(name).is_dir() else catalog.resolve(name)
    try:
        return AutoTokenizer.from_pretrained(name if folder is None else str(folder))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no tokenizer {name!r}: give an asset (`mmlab assets list`), a folder that holds one, or a name "
            f"on the model hub ({str(error).splitlines()[0]})"
        ) from error


class TextReader(Reader):
    """Text as int64 token ids [tokens], with whatever special tokens the tokenizer adds."""

    modality = Modality.TEXT
    settings_of_use = frozenset({"every"})

    def __init__(
        self, tokenizer: str, *, fields: Sequence[str] = ("txt",), max_length: int = 64, every: bool = False
    ) -> None:
        """Settings.

        Args:
            tokenizer: Name of an asset, a folder, or a name on the model hub.
            fields: Where the captions of a sample are, in order of preference: text members (`txt`, `en.txt`)
                or paths into JSON members (`json.caption`, `json.captions.en`, `json.captions.*`), which may
                hold a string or an array of strings. Of several captions training draws one and evaluation
                takes the first.
            max_length: Longer texts are cut, in tokens.
            every: In evaluation, return all captions of a sample, as several rows.
        """
        self.tokenizer = tokenizer
        self.fields = tuple(fields)
        self.max_length = max_length
        self.every = every
        self._built: Any = None

    def __getstate__(self) -> dict[str, Any]:
        # Each process builds its own: a tokenizer that has been used may hold threads.
        return self.__dict__ | {"_built": None}

    def prepare(self) -> None:
        """Fetch the tokenizer, or say that there is none."""
        self._tokenizer()

    def captions(self, members: Mapping[str, bytes]) -> list[str]:
        """All texts of a sample, in the order of `fields`; blank ones are left out."""
        found = [value for field in self.fields for value in read_field(members, field)]
        if not all(isinstance(value, str) for value in found):
            raise BrokenMember("caption is not a string")
        if len(found) > _MAX_CAPTIONS:
            raise BrokenMember("too many captions")
        return [value for value in found if value.strip()]

    def describe(self) -> str:
        """The fields that it reads."""
        return ", ".join(self.fields)

    def finds(self, members: Mapping[str, bytes]) -> bool:
        """Whether the sample has a caption, or something unreadable in its place."""
        try:
            return len(self.captions(members)) > 0
        except BrokenMember:
            return True

    def read(self, members: Mapping[str, bytes], rng: Random | None) -> tuple[Tensor, ...]:
        """One caption, or all, or none."""
        captions = self.captions(members)
        if rng is not None and captions:
            captions = [captions[pick(len(captions), rng)]]
        elif not self.every:
            captions = captions[:1]
        return tuple(self.encode(caption) for caption in captions)

    def steps(self, members: Mapping[str, bytes]) -> int:
        """Tokens of the longest caption."""
        return max((len(self.encode(caption)) for caption in self.captions(members)), default=0)

    def encode(self, text: str) -> Int64[Tensor, " tokens"]:
        """Token ids of a text, at least one."""
        # Half of a surrogate pair, which JSON can escape and no tokenizer takes, becomes a question mark.
        text = text[: _LETTERS * self.max_length].encode("utf-8", "replace").decode("utf-8")
        return torch.tensor(self._ids(text) or [self.pad_id], dtype=torch.int64)

    def _ids(self, text: str) -> list[int]:
        tokenizer = self._tokenizer()
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            ids: list[int] = tokenizer(text, truncation=True, max_length=self.max_length)["input_ids"]
        else:  # without the wrapper, which takes three times as long for a caption
            ids = backend.encode(text).ids
        return ids

    @property
    def pad_id(self) -> int:
        """What rows are padded with: the tokenizer's padding, else its end of text, else 0."""
        tokenizer = self._tokenizer()
        for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        return 0

    def _tokenizer(self) -> Any:
        if self._built is None:
            self._built = load_tokenizer(self.tokenizer)
            if getattr(self._built, "backend_tokenizer", None) is not None:
                self._built.backend_tokenizer.no_padding()
                self._built.backend_tokenizer.enable_truncation(self.max_length)
        return self._built

    def blank(self) -> Int64[Tensor, " tokens"]:
        """One token of padding."""
        return torch.tensor([self.pad_id])

    def stack(self, rows: Sequence[Tensor]) -> Rows:
        """Pad on the right."""
        return pad(rows, self.pad_id)
