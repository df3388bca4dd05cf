"""Values in the members of a sample: whole text members, or paths into JSON members."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mmlab.data.decode import BrokenMember

TEXT_LIMIT = 16 * 2**20
"""Larger text and JSON members, in bytes, are refused: empty arrays in one take thirty times their bytes."""

EACH = "each."
"""What a field of one turn of a conversation begins with: only the reader that takes turns apart knows it."""
_LISTED = 20


def split_field(members: Mapping[str, bytes], field: str) -> tuple[str, list[str]] | None:
    """The member that a field names, and the path inside it; None where no such member is there.

    `en.txt` is the member `en.txt` where there is one; `json.captions.en` is the member `json.captions.en`,
    else `captions.en` in `json`. The longest name that a member has wins.
    """
    parts = field.split(".")
    for length in range(len(parts), 0, -1):
        member = ".".join(parts[:length])
        if member in members:
            return member, parts[length:]
    return None


def read_field(members: Mapping[str, bytes], field: str) -> list[Any]:
    """The values of a field; none where the sample lacks it.

    Args:
        members: Bytes by extension.
        field: Name of a text member, or of a JSON member with a path into it, joined by dots. `*` in the path
            stands for all values of an object, sorted by key, or of an array. An array at the end is its
            elements; null and missing keys are no value.

    Raises:
        BrokenMember: `text above 16 MiB`, `invalid UTF-8`, `invalid JSON`.
    """
    values = _found(members, field)
    flat = [inner for value in values for inner in (value if isinstance(value, list) else [value])]
    return [value for value in flat if value is not None]


def read_row(members: Mapping[str, bytes], field: str) -> list[Any]:
    """The values of a field of which the n-th belongs to the n-th of another: words and their boxes.

    Args:
        members: Bytes by extension.
        field: As for :func:`read_field`.

    Raises:
        BrokenMember: As for :func:`read_field`; one of several values is null, so that left out it would move
            those behind it.
    """
    values = _found(members, field)
    several = [values] if len(values) > 1 else []  # null alone is no value, as where the key is missing
    if any(None in row for row in several + [value for value in values if isinstance(value, list)]):
        raise BrokenMember(f"{field} has null for a value")
    return read_field(members, field)


def has_field(members: Mapping[str, bytes], field: str) -> bool:
    """Whether a sample has a field, if only with nothing in it: an empty array.

    Raises:
        BrokenMember: As for :func:`read_field`.
    """
    return any(value is not None for value in _found(members, field))


def _found(members: Mapping[str, bytes], field: str) -> list[Any]:
    """What the paths of a field lead to."""
    found = split_field(members, field)
    if found is None:
        return []
    member, path = found
    if len(members[member]) > TEXT_LIMIT:
        raise BrokenMember(f"text above {TEXT_LIMIT >> 20} MiB")
    try:
        text = members[member].decode("utf-8")
    except UnicodeDecodeError:
        raise BrokenMember("invalid UTF-8") from None
    if not path:
        return [text]
    try:
        values = [json.loads(text)]
    except (ValueError, RecursionError):
        raise BrokenMember("invalid JSON") from None
    for step in path:
        values = [inner for value in values for inner in _step(value, step)]
    return values


def _step(value: Any, step: str) -> list[Any]:
    if isinstance(value, dict):
        if step == "*":
            return [value[key] for key in sorted(value)]
        return [value[step]] if step in value else []
    return value if step == "*" and isinstance(value, list) else []


def list_fields(members: Mapping[str, bytes]) -> str:
    """The fields of a sample, for messages: members, and keys of JSON objects down to the second level."""
    found: list[str] = []
    for member in sorted(members):
        inside: list[str] = []
        if member.rpartition(".")[2] == "json":
            try:
                inside = _paths(member, read_field({"json": b"[%b]" % members[member]}, "json.*"), depth=2)
            except BrokenMember:
                inside = [f"{member} (unreadable)"]
        found += inside or [member]
    return ", ".join(found[:_LISTED]) + (", ..." if len(found) > _LISTED else "")


def _paths(path: str, values: list[Any], *, depth: int) -> list[str]:
    found: list[str] = []
    for value in values:
        if depth == 0 or not isinstance(value, dict) or not value:
            found.append(path)
            continue
        for key in value:
            found += _paths(f"{path}.{key}", [value[key]], depth=depth - 1)
    return found
