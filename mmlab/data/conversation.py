"""Turns of a conversation -> token ids in a model's own chat format, and which of them it is to say."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from mmlab.batch import MARKERS, Modality
from mmlab.data.text import load_tokenizer

Piece = str | Modality
"""Text, or a marker for the next row of a modality."""
_OPEN, _CLOSE = "\ue000", "\ue001"
"""What stands for a message while the template is rendered; private characters that no template has."""
_HELD = re.compile(f"{_OPEN}(\\d+){_CLOSE}")


class Turn(NamedTuple):
    """What a user says, and what is answered; no answer where it is yet to be given."""

    user: tuple[Piece, ...]
    assistant: str | None


class Encoding(NamedTuple):
    """Token ids of a conversation."""

    ids: list[int]
    """Token ids and :data:`mmlab.batch.MARKERS`."""
    target: list[bool]
    """True where the model is to say the token: answers, each with what ends it."""


class ChatFormat:
    """A tokenizer and its chat template.

    The template is rendered with placeholders and its text is tokenized apart from the messages: nothing in a
    message can pass for a special token, and a question has the same tokens with its answer as without.
    """

    def __init__(self, tokenizer: str, *, system: str | None = None) -> None:
        """Load the tokenizer.

        Args:
            tokenizer: Name of an asset, a folder, or a name on the model hub.
            system: First message; None leaves it to the template.

        Raises:
            ValueError: No such tokenizer; one without an end of text, or with a template that cannot be used.
        """
        self._tokenizer: Any = load_tokenizer(tokenizer)
        self._name = tokenizer
        self._system = system
        if self._tokenizer.eos_token_id is None:
            raise ValueError(f"tokenizer {tokenizer!r} has no end of text, so no answer could end")
        if getattr(self._tokenizer, "backend_tokenizer", None) is None:
            raise ValueError(
                f"tokenizer {tokenizer!r} has no fast version (tokenizer.json): give one that has"
            )
        self._frame = lru_cache(maxsize=256)(self._render)
        self._frame(1, True)

    @property
    def pad_id(self) -> int:
        """What rows are padded with."""
        found = self._tokenizer.pad_token_id
        return int(self._tokenizer.eos_token_id if found is None else found)

    def encode(self, turns: Sequence[Turn]) -> Encoding:
        """Tokenize a conversation; only its last turn may lack an answer."""
        ids: list[int] = []
        target: list[bool] = []

        def add(tokens: Sequence[int], *, said: bool) -> None:
            ids.extend(tokens)
            target.extend([said] * len(tokens))

        for before, number in self._frame(len(turns), turns[-1].assistant is not None):
            add(before, said=False)
            if number is None:
                continue
            turn, is_answer = divmod(number, 2)
            if not is_answer:
                for piece in turns[turn].user:
                    add([MARKERS[piece]] if isinstance(piece, Modality) else self._plain(piece), said=False)
                continue
            answer = turns[turn].assistant
            assert answer is not None, "a turn before the last has an answer"
            add([*self._plain(answer), self._end], said=True)
        return Encoding(ids, target)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def _plain(self, text: str) -> list[int]:
        """Tokens of a message, in which nothing is special."""
        backend = self._tokenizer.backend_tokenizer
        # Half of a surrogate pair, which JSON can escape and no tokenizer takes, becomes a question mark.
        text = text.encode("utf-8", "replace").decode("utf-8")
        backend.encode_special_tokens = True
        ids: list[int] = backend.encode(text, add_special_tokens=False).ids
        backend.encode_special_tokens = False
        return ids

    def _render(self, turns: int, answered: bool) -> list[tuple[tuple[int, ...], int | None]]:
        """What the template puts before each message, tokenized, with the number of the message.

        The end of each answer is left to :meth:`encode`; what the template puts after the last is left out.
        """
        if self._tokenizer.chat_template is None:
            return self._without_template(turns, answered)
        count = 2 * turns - (0 if answered else 1)
        messages = [
            {"role": ("user", "assistant")[number % 2], "content": f"{_OPEN}{number}{_CLOSE}"}
            for number in range(count)
        ]
        first = [] if self._system is None else [{"role": "system", "content": self._system}]
        whole = self._apply([*first, *messages], prompt=not answered)
        asked = self._apply([*first, *messages[: 2 * turns - 1]], prompt=True)
        parts = _HELD.split(whole)
        if [int(number) for number in parts[1::2]] != list(range(count)) or not whole.startswith(asked):
            raise ValueError(
                f"the chat template of {self._name!r} changes messages or their order: give another "
                "tokenizer, or a copy without chat_template"
            )
        frame: list[tuple[tuple[int, ...], int | None]] = []
        for number, text in enumerate(parts[::2]):
            ids = tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])
            after_answer = number > 0 and (number - 1) % 2 == 1
            if after_answer:  # its first token is what ends the answer
                self._end = ids[0] if ids else self._tokenizer.eos_token_id
                ids = ids[1:]
            if number < count:
                frame.append((ids, number))
            elif not answered:
                frame.append((ids, None))
        return frame

    def _apply(self, messages: list[dict[str, str]], *, prompt: bool) -> str:
        rendered: str = self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=prompt
        )
        return rendered

    def _without_template(self, turns: int, answered: bool) -> list[tuple[tuple[int, ...], int | None]]:
        """Plain text, one message after the other, each answer closed by the end of text."""
        self._end = int(self._tokenizer.eos_token_id)
        start = () if self._tokenizer.bos_token_id is None else (int(self._tokenizer.bos_token_id),)
        system = () if self._system is None else tuple(self._plain(self._system + "\n"))
        gap = tuple(self._plain("\n"))
        count = 2 * turns - (0 if answered else 1)
        frame: list[tuple[tuple[int, ...], int | None]] = [
            ((*start, *system) if number == 0 else (gap if number % 2 else ()), number)
            for number in range(count)
        ]
        return frame if answered else [*frame, (gap, None)]
