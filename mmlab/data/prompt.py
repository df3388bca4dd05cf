"""Prompts and answers for a language model, from templates with the fields of a sample."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from random import Random
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from mmlab.batch import MARKERS, Modality
from mmlab.data.conversation import ChatFormat, Turn, last_answer, names_as_many
from mmlab.data.decode import BrokenMember
from mmlab.data.fields import EACH, read_field
from mmlab.data.named import Named
from mmlab.data.reader import Reader, Rows, pad, pick
from mmlab.data.template import Choose, MissingFieldError, Prompt, as_text, chosen_by, field_values, fill

_MAX_TURNS = 1000
"""Of a sample."""
_MAX_CHOICES = 1000
"""Of a sample; each is a row of text."""


class PromptReader(Reader):
    """Conversations as token ids in the language model's chat format, answers marked as what it is to say.

    Rows are int64 [tokens, 2]: ids and :data:`mmlab.batch.MARKERS`, and 1 where the token is to be said.
    """

    modality = Modality.TEXT
    has_targets = True

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
            prompts: Training draws one of those whose fields a sample has, evaluation takes the first whose
                answer it has. Where there are several, only those count that name as many rows of each
                modality as the sample has (`<image>` for one with a picture, none for one without), unless
                none does.
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
                nothing to choose, or that cannot stand for the answer; no tokens or turns allowed.
        """
        if max_length < 1:
            raise ValueError(f"max_length {max_length}: must be at least 1 token")
        if max_turns < 1:
            raise ValueError(f"max_turns {max_turns}: must be at least 1")
        for prompt in prompts:
            if prompt.assistant == "":
                raise ValueError("prompts: assistant is empty, so there is nothing to learn")
            if each is None and (wrong := [f for f in prompt.fields() if f.startswith(EACH)]):
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
        self._media: tuple[Reader, ...] = ()
        if choices is not None:
            self._check_choices(choices)

    def _check_choices(self, choices: str | list[str]) -> None:
        if isinstance(choices, str):
            if self.each is None and choices.startswith(EACH):
                raise ValueError(f"choices: {choices} needs `each`, the field that holds the turns")
        elif len(choices) < 2 or not all(text.strip() for text in choices):
            raise ValueError(f"choices: {choices}: give two texts at least, none of them empty")
        for prompt in self.prompts:
            if not prompt.answers_with_a_field:
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

    @property
    def ends(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        return self._format.ends(turns=1 if self.each is None else 2)

    def prepare(self) -> None:
        """Fetch the tokenizer, and try its chat template."""
        assert self._format

    @property
    def identity(self) -> str:
        """Class and settings, and what :meth:`steps` counts: tables of lengths are kept by it."""
        return f"{super().identity} whole conversations"

    def beside(self, readers: Sequence[Reader]) -> Reader:
        """A copy that knows how many media a sample has."""
        found = copy.copy(self)
        found._media = tuple(one.raw for one in readers if one.modality is not self.modality)
        return found

    def named_media(self) -> set[Modality]:
        """Modalities that the prompts name."""
        return set().union(*(prompt.media() for prompt in self.prompts))

    def named_prompts(self) -> list[Named]:
        """The fields of each prompt, which some sample should have together."""
        return [
            Named(f"text.prompts[{number}]", partial(self._lacking, prompt.fields()))
            for number, prompt in enumerate(self.prompts)
        ]

    def named_choices(self) -> list[Named]:
        """The field of the choices, where they are in one."""
        if not isinstance(self.choices, str):
            return []
        return [Named("text.choices", partial(self._lacking, [self.choices]))]

    def _lacking(self, fields: Sequence[str], members: Mapping[str, bytes]) -> list[str]:
        """Those of the fields that a sample does not have."""
        asked = {**members, **self.asked(members)}
        return [field for field in fields if not read_field(asked, field)]

    def describe(self) -> str:
        """The fields that it reads."""
        return " or ".join(", ".join(prompt.fields()) for prompt in self.prompts)

    def finds(self, members: Mapping[str, bytes]) -> bool:
        """Whether a sample has the fields of any prompt, answer included."""
        for prompt in self.prompts:
            try:
                self._turns(prompt, members, self._entries(members, None), chosen_by(None), complete=True)
            except MissingFieldError:
                continue
            except BrokenMember:
                pass  # it is there, and is counted when its turn comes
            return True
        return False

    def questions(self, members: Mapping[str, bytes]) -> list[str]:
        """What evaluation asks of a sample, for people to read; none where it lacks the fields."""
        try:
            turns = self._conversations(members, None)[0]
        except BrokenMember:
            return []
        said = [piece for turn in turns for piece in (*turn.user, f"\n{turn.assistant}\n")][:-1]
        return ["".join("" if isinstance(piece, Modality) else piece for piece in said)]

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
        offered = self._conversations(members, rng)
        turns = offered[0 if rng is None else pick(len(offered), rng)]
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
                target = encoding.target if shorten else last_answer(encoding.target, turns)
                return torch.tensor([encoding.ids, target], dtype=torch.int64).T.contiguous()
            if not shorten or len(turns) == 1:
                raise BrokenMember(f"{len(encoding.ids)} tokens, above max_length {self.max_length}")
            turns = turns[:-1]

    def _choices(self, members: Mapping[str, bytes]) -> list[str]:
        """What there is to choose among."""
        if not isinstance(self.choices, str):
            found = self.choices or []
        else:
            values = field_values(self.choices, members, self._entries(members, None)[-1])
            found = [as_text(value, self.choices) for value in values]
        if not 2 <= len(found) <= _MAX_CHOICES:
            limit = "fewer than 2" if len(found) < 2 else f"more than {_MAX_CHOICES}"
            raise BrokenMember(f"{limit} choices")
        stripped = [text.strip() for text in found]
        if "" in stripped:
            raise BrokenMember("an empty choice")
        return stripped

    def steps(self, members: Mapping[str, bytes]) -> int:
        """Tokens of the longest conversation that training may read of a sample.

        With the turns that have the most tokens, up to `max_turns`, and of several values of a field the
        longest; at most `max_length`, above which training leaves turns out or the sample.
        """
        lengths: list[int] = []
        problem: MissingFieldError | None = None
        for prompt in self.prompts:
            try:
                entries = self._longest(prompt, members)
                lengths.append(self._length(self._turns(prompt, members, entries, self._most)))
            except MissingFieldError as error:
                problem = error
        if not lengths:
            assert problem is not None
            raise problem
        return min(max(lengths), self.max_length)

    def _longest(self, prompt: Prompt, members: Mapping[str, bytes]) -> list[bytes | None]:
        """JSON of the turns that make a conversation of training the longest."""
        listed = self._listed(members)
        if listed is None or self.ordered or len(listed) <= self.max_turns:
            return self._all(members, listed)[: self.max_turns]
        sized: list[tuple[int, bytes | None]] = []
        problem: BrokenMember | None = None
        for entry in self._all(members, listed):
            try:
                sized.append((self._length(self._turns(prompt, members, [entry], self._most)), entry))
            except BrokenMember as error:  # other draws are read
                problem = error
        if not sized:
            assert problem is not None
            raise problem
        return [entry for _, entry in sorted(sized, key=lambda one: -one[0])[: self.max_turns]]

    def _length(self, turns: list[Turn]) -> int:
        return len(self._format.encode(turns).ids)

    def _most(self, values: Sequence[Any]) -> Any:
        """The value with the most tokens."""
        if len(values) == 1:
            return values[0]
        said = [value if isinstance(value, str) else json.dumps(value) for value in values]
        return values[max(range(len(said)), key=lambda n: self._length([Turn((said[n],), None)]))]

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
        ids, length = pad([row[:, 0] for row in rows], self._format.pad_id)[:2]
        return Rows(ids, length, pad([row[:, 1] for row in rows]).data.bool())

    def _conversations(self, members: Mapping[str, bytes], rng: Random | None) -> list[list[Turn]]:
        """What each prompt makes of a sample, those of prompts that do not fit it left out; one at least.

        In evaluation those whose answer is missing count only where there are no others.

        Raises:
            MissingFieldError: It has the fields of no prompt.
        """
        possible: list[list[Turn]] = []
        problem: MissingFieldError | None = None
        for prompt in self.prompts:
            try:
                entries = self._entries(members, rng)
                complete = rng is not None
                possible.append(self._turns(prompt, members, entries, chosen_by(rng), complete=complete))
            except MissingFieldError as error:
                problem = error
        if not possible:
            assert problem is not None
            raise problem
        if len(possible) == 1:
            return possible
        counts = {reader.modality: reader.count(members, training=rng is not None) for reader in self._media}
        fitting = [turns for turns in possible if names_as_many(turns, counts)] or possible
        return [turns for turns in fitting if turns[-1].assistant is not None] or fitting

    def _turns(
        self,
        prompt: Prompt,
        members: Mapping[str, bytes],
        entries: Sequence[bytes | None],
        choose: Choose,
        *,
        complete: bool = True,
    ) -> list[Turn]:
        """The conversation that a prompt makes of a sample's turns.

        Raises:
            MissingFieldError: A field is not there; of an answer only where `complete`.
        """
        turns = []
        for number, entry in enumerate(entries):
            opening = prompt.opening if number == 0 else ""
            user = tuple(fill(opening + prompt.user, members, entry, choose))
            try:
                pieces = list(fill(prompt.assistant, members, entry, choose))
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
        """JSON of each turn's own fields, of those that are read; None where the prompts name none."""
        listed = self._listed(members)
        if listed is None:
            return self._all(members, None)
        if self.ordered:
            return self._all(members, listed if rng is None else listed[: self.max_turns])
        if rng is None:
            return self._all(members, listed[:1])
        drawn = sorted((rng.random(), number) for number in range(len(listed)))[: self.max_turns]
        return self._all(members, [listed[number] for _, number in drawn])

    def _listed(self, members: Mapping[str, bytes]) -> list[Any] | None:
        """The turns of a sample; None where it has no list of them."""
        found = [] if self.each is None else read_field(members, self.each)
        if len(found) > _MAX_TURNS:
            raise BrokenMember("too many turns")
        return found or None

    def _all(self, members: Mapping[str, bytes], listed: Sequence[Any] | None) -> list[bytes | None]:
        """JSON of turns; of the sample itself where it has no list of them."""
        if listed is not None:
            return [json.dumps(turn).encode() for turn in listed]
        if self.each is None:
            return [None]
        found = read_field(members, self.each.rpartition(".")[0])
        if not found:
            raise MissingFieldError(f"no {self.each}")
        return [found[0].encode() if isinstance(found[0], str) else json.dumps(found[0]).encode()]
