"""Templates of questions and answers, filled from the fields of a sample."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from mmlab.batch import Modality
from mmlab.data.conversation import Piece
from mmlab.data.decode import BrokenMember
from mmlab.data.fields import EACH, read_field
from mmlab.data.reader import pick

_TOKEN = re.compile(r"\{([^{}]+)\}|<(image|audio|signal)>")
_ALL = "all "

Choose = Callable[[Sequence[Any]], Any]
"""Takes one of the values of a field, of which there is one at least."""


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

    def media(self) -> set[Modality]:
        """Modalities that the question names."""
        return {Modality(name) for _, name in _TOKEN.findall(self.opening + self.user) if name}

    @property
    def answers_with_a_field(self) -> bool:
        """Whether the answer is one field, and nothing beside it."""
        found = _TOKEN.fullmatch(self.assistant)
        return found is not None and found[1] is not None and not found[1].startswith(_ALL)


class MissingFieldError(BrokenMember):
    """A sample lacks a field that a template names."""


def chosen_by(rng: Random | None) -> Choose:
    """Training draws, evaluation takes the first."""
    return lambda values: values[0 if rng is None else pick(len(values), rng)]


def fill(template: str, members: Mapping[str, bytes], entry: bytes | None, choose: Choose) -> Iterator[Piece]:
    """Fill a template: texts, and markers of media.

    Args:
        template: As in :class:`Prompt`.
        members: Of the sample.
        entry: JSON of a turn's own fields; None where there are no turns.
        choose: Of several values, one.

    Raises:
        MissingFieldError: The sample lacks a field.
        BrokenMember: A field cannot be read, or is no text.
    """
    at = 0
    text = ""
    for found in _TOKEN.finditer(template):
        text += template[at : found.start()]
        at = found.end()
        field, modality = found.groups()
        if field is not None:
            text += _value(field, members, entry, choose)
            continue
        if text:
            yield text
        text = ""
        yield Modality(modality)
    text += template[at:]
    if text:
        yield text


def _value(field: str, members: Mapping[str, bytes], entry: bytes | None, choose: Choose) -> str:
    """One value of a field, as text; or all of them."""
    if field.startswith(_ALL):
        path = field.removeprefix(_ALL)
        return "; ".join(as_text(value, path) for value in field_values(path, members, entry))
    return as_text(choose(field_values(field, members, entry)), field)


def field_values(field: str, members: Mapping[str, bytes], entry: bytes | None) -> list[Any]:
    """All values of a field, at least one; `each.` names one of the turn."""
    if field.startswith(EACH) and entry is not None:
        values = read_field({"each": entry}, field)
    else:
        values = read_field(members, field)
    if not values:
        raise MissingFieldError(f"no {field}")
    return values


def as_text(value: Any, field: str) -> str:
    """A value as it stands in a prompt."""
    if isinstance(value, dict):
        raise BrokenMember(f"{field} is an object")
    return value if isinstance(value, str) else json.dumps(value)
