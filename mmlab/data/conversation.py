"""Turns of a conversation -> token ids in a model's own chat format, and which of them it is to say."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

from jinja2 import TemplateError

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


class _Part(NamedTuple):
    """A message in its place in the chat format."""

    before: tuple[int, ...]
    """What the template puts before it, without what ends the answer before."""
    number: int | None
    """Of the message, even ones are questions; None: an answer that is yet to be given."""
    end: tuple[int, ...] = ()
    """Of an answer: what the template puts behind it, up to the token that ends it."""


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
        added = self._tokenizer.added_tokens_decoder.items()
        self._special = {
            *self._tokenizer.all_special_ids,
            *(number for number, token in added if token.special),
        }
        self._frame = lru_cache(maxsize=256)(self._render)
        self._frame(1, True)

    @property
    def pad_id(self) -> int:
        """What rows are padded with."""
        found = self._tokenizer.pad_token_id
        return int(self._tokenizer.eos_token_id if found is None else found)

    def ends(self, *, turns: int = 1) -> tuple[int, ...]:
        """Tokens with which the answers of a conversation end, each once.

        Raises:
            ValueError: An answer of it has none.
        """
        return tuple(dict.fromkeys(part.end[-1] for part in self._frame(turns, True) if part.end))

    def encode(self, turns: Sequence[Turn]) -> Encoding:
        """Tokenize a conversation; only its last turn may lack an answer."""
        ids: list[int] = []
        target: list[bool] = []

        def add(tokens: Sequence[int], *, said: bool) -> None:
            ids.extend(tokens)
            target.extend([said] * len(tokens))

        for before, number, end in self._frame(len(turns), turns[-1].assistant is not None):
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
            add([*self._plain(answer), *end], said=True)
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

    def _render(self, turns: int, answered: bool) -> list[_Part]:
        """The messages in their places; what the template puts behind the end of the last is left out."""
        if self._tokenizer.chat_template is None:
            return self._without_template(turns, answered)
        first, *others = self._around(turns, answered)
        frame: list[_Part] = []
        before = self._ids(first)
        for number, text in enumerate(others):
            ids = self._ids(text)
            end, behind = self._cut(ids, text) if number % 2 else ((), ids)
            frame.append(_Part(before, number, end))
            before = behind
        return frame if answered else [*frame, _Part(before, None)]

    def _around(self, turns: int, answered: bool) -> list[str]:
        """What the template puts before, between and behind the messages.

        Before the last answer it is the same where that is yet to be given. Some templates put more before
        one that is there (Qwen3: an empty thought); a model trained behind that would be asked without it.
        """
        last = 2 * turns - 1
        messages = [
            {"role": ("user", "assistant")[number % 2], "content": f"{_OPEN}{number}{_CLOSE}"}
            for number in range(last + 1)
        ]
        if self._system is not None:
            messages.insert(0, {"role": "system", "content": self._system})
        whole = self._apply(messages, prompt=False)
        asked = self._apply(messages[:-1], prompt=True)
        held = [[int(number) for number in _HELD.findall(text)] for text in (whole, asked)]
        if held != [list(range(last + 1)), list(range(last))] or not whole.startswith(asked):
            raise ValueError(
                f"the chat template of {self._name!r} changes messages or their order: give another "
                "tokenizer, or a copy without chat_template"
            )
        before, _, behind = whole.partition(f"{_OPEN}{last}{_CLOSE}")
        if asked == self._apply(messages[:-1], prompt=False):
            asked = before  # the template has no prompt of its own for an answer
        around = _HELD.split(asked)[::2]
        return [*around, behind] if answered else around

    def _ids(self, text: str) -> tuple[int, ...]:
        """Tokens of what the template says."""
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _cut(self, ids: tuple[int, ...], text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What ends an answer, and what is left of the tokens behind it."""
        if not ids:
            return (int(self._tokenizer.eos_token_id),), ()
        for place, token in enumerate(ids, 1):
            if token in self._special:
                return ids[:place], ids[place:]
        raise ValueError(
            f"the chat template of {self._name!r} puts {text!r} behind an answer, and no special token that "
            f"ends it: give another tokenizer, or a copy whose template has {self._tokenizer.eos_token}"
        )

    def _apply(self, messages: list[dict[str, str]], *, prompt: bool) -> str:
        try:
            rendered: str = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=prompt
            )
        except TemplateError as error:
            remedy = "" if self._system is None else "leave data.text.system out, or "
            raise ValueError(
                f"the chat template of {self._name!r} refuses a conversation ({error}): {remedy}give another "
                "tokenizer"
            ) from error
        return rendered

    def _without_template(self, turns: int, answered: bool) -> list[_Part]:
        """Plain text, one message after the other, each answer closed by the end of text."""
        end = (int(self._tokenizer.eos_token_id),)
        start = () if self._tokenizer.bos_token_id is None else (int(self._tokenizer.bos_token_id),)
        system = () if self._system is None else tuple(self._plain(self._system + "\n"))
        gap = tuple(self._plain("\n"))
        count = 2 * turns - (0 if answered else 1)
        frame = [
            _Part(gap, number, end) if number % 2 else _Part((*start, *system) if number == 0 else (), number)
            for number in range(count)
        ]
        return frame if answered else [*frame, _Part(gap, None)]


def names_as_many(turns: Sequence[Turn], counts: Mapping[Modality, int]) -> bool:
    """Whether a conversation names as many rows of each modality as there are."""
    named = Counter(piece for turn in turns for piece in turn.user if isinstance(piece, Modality))
    return all(named[modality] == count for modality, count in counts.items())


def last_answer(target: Sequence[bool], turns: Sequence[Turn]) -> list[bool]:
    """Of what is to be said, the answer of the last turn: in evaluation those before it are given."""
    if turns[-1].assistant is None:
        return [False] * len(target)
    starts = (at for at, (before, said) in enumerate(pairwise([False, *target])) if said and not before)
    last = max(starts)
    return [said and at >= last for at, said in enumerate(target)]
