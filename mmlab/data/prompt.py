"""Prompts and answers for a language model, from templates with the fields of a sample."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from random import Random
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from mmlab.batch import MARKERS, Modality
from mmlab.data.conversation import ChatFormat, Piece, Turn
from mmlab.data.decode import BrokenMember
from mmlab.data.fields import read_field
from mmlab.data.reader import Reader, Rows, pad, pick

_TOKEN = re.compile(r"\{([^{}]+)\}|<(image|audio|signal)>")
_EACH = "each."
_ALL = "all "
_MAX_TURNS = 1000
"""Of a sample."""
_MAX_CHOICES = 1000
"""Of a sample; each is a row of text."""


@dataclass(frozen=True)
class Prompt:
    """Templates of a question and its answer.

    `{path}` is a field of the sample (`{json.question}`, `{txt}`), of whose values training draws one and
    evaluation takes the first; `{all path}` is all of them, with semicolons between; `{each.path}` a field of
    each turn, where the reader has `each`. `<image>`, `<audio>` and `<signal>` stand for the sample's next
    row of that modality.
    """

    user: str
    """What is asked."""
    assistant: str
    """What is to be answered."""
    opening: str = ""
    """Stands before the first question of a conversation."""

    def fields(self) -> list[str]:
        """Fields that the templates name."""
        templates = self.opening + self.user + self.assistant
        found = (field.removeprefix(_ALL) for field, _ in _TOKEN.findall(templates) if field)
        return list(dict.fromkeys(found))


class MissingFieldError(BrokenMember):
    """A sample lacks a field that a template names."""


class PromptReader(Reader):
    """Conversations as token ids in the language model's chat format, answers marked as what it is to say.

    Rows are int64 [tokens, 2]: ids and :data:`mmlab.batch.MARKERS`, and 1 where the token is to be said.
    """

    modality = Modality.TEXT

    def __init__(
        self,
        tokenizer: str,
        *,
        prompts: list[Prompt],
        each: str | None = None,
        ordered: bool = False,
        choices: str | list[str] | None = None,
        system: str | None = None,
        max_length: int = 512,
        max_turns: int = 16,
    ) -> None:
        """Settings.

        Args:
            tokenizer: Of the language model: name of an asset, a folder, or a name on the model hub.
            prompts: Training draws one of those whose fields a sample has; evaluation takes the first.
            each: Field that holds a list of turns (`json.questions`), each with fields of its own. A sample
                without it is one turn, whose fields are those beside it (`json`). Training draws the turns
                and their order; evaluation takes the first.
            ordered: Turns follow on each other: training keeps their order and leaves out the last where
                there are too many, evaluation asks the last one after all before it.
            choices: What evaluation chooses among, each in the place of the answer: a field that holds them
                (`json.choices`), or the texts themselves. Training sees the right answer alone. None: answers
                are said, not chosen.
            system: First message of every conversation; None leaves it to the chat template.
            max_length: In tokens, media not counted; longer samples are skipped and counted.
            max_turns: Of a conversation in training.

        Raises:
            ValueError: A template without an answer, or with a field that is no path; choices that leave
                nothing to choose, or that cannot stand for the answer.
        """
        for prompt in prompts:
            if not _TOKEN.search(prompt.assistant) and prompt.assistant == "":
                raise ValueError("prompts: assistant is empty, so there is nothing to learn")
            if each is None and (wrong := [f for f in prompt.fields() if f.startswith(_EACH)]):
                raise ValueError(f"prompts: {{{wrong[0]}}} needs `each`, the field that holds the turns")
        if ordered and each is None:
            raise ValueError("ordered needs `each`, the field that holds the turns")
        if not prompts:
            raise ValueError("prompts: give at least one")
        self.tokenizer = tokenizer
        self.prompts = prompts
        self.each = each
        self.ordered = ordered
        self.choices = choices
        self.system = system
        self.max_length = max_length
        self.max_turns = max_turns
        if choices is not None:
            self._check_choices(choices)

    def _check_choices(self, choices: str | list[str]) -> None:
        if isinstance(choices, str):
            if self.each is None and choices.startswith(_EACH):
                raise ValueError(f"choices: {choices} needs `each`, the field that holds the turns")
        elif len(choices) < 2 or not all(text.strip() for text in choices):
            raise ValueError(f"choices: {choices}: give two texts at least, none of them empty")
        for prompt in self.prompts:
            found = _TOKEN.fullmatch(prompt.assistant)
            if found is None or found[1] is None or found[1].startswith(_ALL):
                raise ValueError(
                    f"prompts: assistant {prompt.assistant!r} with choices, each of which is a whole answer: "
                    "leave nothing in it but the field of the right one, such as {json.answer}"
                )

    def __getstate__(self) -> dict[str, Any]:
        # Each process builds its own tokenizer: one that has been used may hold threads.
        return {name: value for name, value in self.__dict__.items() if name != "_format"}

    @cached_property
    def _format(self) -> ChatFormat:
        return ChatFormat(self.tokenizer, system=self.system)

    def prepare(self) -> None:
        """Fetch the tokenizer, and try its chat template."""
        assert self._format

    def describe(self) -> str:
        """The fields that it reads."""
        return " or ".join(", ".join(prompt.fields()) for prompt in self.prompts)

    def finds(self, members: Mapping[str, bytes]) -> bool:
        """Whether a sample has the fields of any prompt, answer included."""
        for prompt in self.prompts:
            try:
                self._turns(prompt, members, None, complete=True)
            except MissingFieldError:
                continue
            except BrokenMember:
                pass  # it is there, and is counted when its turn comes
            return True
        return False

    def questions(self, members: Mapping[str, bytes]) -> list[str]:
        """What evaluation asks of a sample, for people to read; none where it lacks the fields."""
        for prompt in self.prompts:
            try:
                turns = self._turns(prompt, members, None, complete=False)
            except BrokenMember:
                continue
            said = [piece for turn in turns for piece in (*turn.user, f"\n{turn.assistant}\n")][:-1]
            return ["".join("" if isinstance(piece, Modality) else piece for piece in said)]
        return []

    def asked(self, members: Mapping[str, bytes]) -> dict[str, bytes]:
        """The turn that evaluation asks, as a member `each`; none where there are no turns."""
        if self.each is None:
            return {}
        try:
            (entry,) = self._entries(members, None)[-1:]
        except MissingFieldError:
            return {}
        return {} if entry is None else {"each": entry}

    def read(self, members: Mapping[str, bytes], rng: Random | None) -> tuple[Tensor, ...]:
        """One conversation; in evaluation, an answer may be missing and is then not there.

        With choices, evaluation has a conversation for each, in their order.
        """
        possible: list[list[Turn]] = []
        problem: BrokenMember | None = None
        for prompt in self.prompts:
            try:
                possible.append(self._turns(prompt, members, rng, complete=rng is not None))
            except MissingFieldError as error:
                problem = error
        if not possible:
            assert problem is not None
            raise problem
        turns = possible[0 if rng is None else pick(len(possible), rng)]
        if rng is not None or self.choices is None:
            return (self._row(turns, shorten=rng is not None),)
        *before, last = turns
        chosen = [last._replace(assistant=choice) for choice in self._choices(members)]
        return tuple(self._row([*before, turn], shorten=False) for turn in chosen)

    def _row(self, turns: list[Turn], *, shorten: bool) -> Int64[Tensor, "tokens two"]:
        """Tokenize a conversation; turns that are too much are left out where that may be."""
        while True:
            encoding = self._format.encode(turns)
            if len(encoding.ids) <= self.max_length:
                target = encoding.target if shorten else _asked(encoding.target, turns)
                return torch.tensor([encoding.ids, target], dtype=torch.int64).T.contiguous()
            if not shorten or len(turns) == 1:
                raise BrokenMember(f"{len(encoding.ids)} tokens, above max_length {self.max_length}")
            turns = turns[:-1]

    def _choices(self, members: Mapping[str, bytes]) -> list[str]:
        """What there is to choose among."""
        if not isinstance(self.choices, str):
            found = self.choices or []
        else:
            values = _values(self.choices, members, self._entries(members, None)[-1])
            found = [_text(value, self.choices) for value in values]
        if not 2 <= len(found) <= _MAX_CHOICES:
            limit = "fewer than 2" if len(found) < 2 else f"more than {_MAX_CHOICES}"
            raise BrokenMember(f"{limit} choices")
        stripped = [text.strip() for text in found]
        if "" in stripped:
            raise BrokenMember("an empty choice")
        return stripped

    def check(self, rows: Mapping[Modality, Sequence[Tensor]]) -> None:
        """Raise BrokenMember unless a sample has as many media as its conversation names."""
        for row in rows.get(Modality.TEXT, ()):
            for modality, marker in MARKERS.items():
                named = int((row[:, 0] == marker).sum())
                if named > 0 and modality in rows and named != len(rows[modality]):
                    raise BrokenMember(f"{named} x <{modality}> for {len(rows[modality])} in the sample")

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids."""
        return self._format.decode(ids)

    def blank(self) -> Int64[Tensor, "one two"]:
        """One token of padding, which nobody is to say."""
        return torch.tensor([[self._format.pad_id, 0]])

    def stack(self, rows: Sequence[Tensor]) -> Rows:
        """Pad on the right."""
        ids, length, _ = pad([row[:, 0] for row in rows], self._format.pad_id)
        return Rows(ids, length, pad([row[:, 1] for row in rows]).data.bool())

    def _turns(
        self, prompt: Prompt, members: Mapping[str, bytes], rng: Random | None, *, complete: bool
    ) -> list[Turn]:
        """The conversation that a prompt makes of a sample.

        Raises:
            MissingFieldError: A field is not there; of an answer only where `complete`.
        """
        entries = self._entries(members, rng)
        turns = []
        for number, entry in enumerate(entries):
            opening = prompt.opening if number == 0 else ""
            user = tuple(_pieces(opening + prompt.user, members, entry, rng))
            try:
                pieces = list(_pieces(prompt.assistant, members, entry, rng))
            except MissingFieldError:
                if complete or number + 1 < len(entries):
                    raise
                turns.append(Turn(user, None))
                break
            answer = "".join(pieces).strip()
            if not answer:
                raise BrokenMember("empty answer")
            turns.append(Turn(user, answer))
        return turns

    def _entries(self, members: Mapping[str, bytes], rng: Random | None) -> list[bytes | None]:
        """JSON of each turn's own fields; None where the prompts name none."""
        if self.each is None:
            return [None]
        found = read_field(members, self.each)
        if not found:  # the sample is one turn
            parent = self.each.rpartition(".")[0]
            found = read_field(members, parent)
            if not found:
                raise MissingFieldError(f"no {self.each}")
            return [found[0].encode() if isinstance(found[0], str) else _json(found[0])]
        if len(found) > _MAX_TURNS:
            raise BrokenMember("too many turns")
        if self.ordered:
            return [_json(turn) for turn in (found if rng is None else found[: self.max_turns])]
        if rng is None:
            return [_json(found[0])]
        drawn = sorted((rng.random(), number) for number in range(len(found)))[: self.max_turns]
        return [_json(found[number]) for _, number in drawn]


def _asked(target: Sequence[bool], turns: Sequence[Turn]) -> list[bool]:
    """Of what is to be said, the answer of the last turn: in evaluation those before it are given."""
    if turns[-1].assistant is None:
        return [False] * len(target)
    starts = (at for at, (before, said) in enumerate(pairwise([False, *target])) if said and not before)
    last = max(starts)
    return [said and at >= last for at, said in enumerate(target)]


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _pieces(
    template: str, members: Mapping[str, bytes], entry: bytes | None, rng: Random | None
) -> Iterator[Piece]:
    """Fill a template: texts, and markers of media."""
    at = 0
    text = ""
    for found in _TOKEN.finditer(template):
        text += template[at : found.start()]
        at = found.end()
        field, modality = found.groups()
        if field is not None:
            text += _value(field, members, entry, rng)
            continue
        if text:
            yield text
        text = ""
        yield Modality(modality)
    text += template[at:]
    if text:
        yield text


def _value(field: str, members: Mapping[str, bytes], entry: bytes | None, rng: Random | None) -> str:
    """One value of a field, as text; or all of them."""
    if field.startswith(_ALL):
        path = field.removeprefix(_ALL)
        return "; ".join(_text(value, path) for value in _values(path, members, entry))
    values = _values(field, members, entry)
    return _text(values[0 if rng is None else pick(len(values), rng)], field)


def _values(field: str, members: Mapping[str, bytes], entry: bytes | None) -> list[Any]:
    """All values of a field, at least one."""
    if field.startswith(_EACH) and entry is not None:
        values = read_field({"each": entry}, field)
    else:
        values = read_field(members, field)
    if not values:
        raise MissingFieldError(f"no {field}")
    return values


def _text(value: Any, field: str) -> str:
    if isinstance(value, dict):
        raise BrokenMember(f"{field} is an object")
    return value if isinstance(value, str) else json.dumps(value)
