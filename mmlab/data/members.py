"""What the members of a sample are where no config says it: by their extensions."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from mmlab.data.fields import read_field


class Kind(StrEnum):
    """What a member is."""

    IMAGE = "image"
    SOUND = "sound"
    TEXT = "text"
    SIGNAL = "signal"
    LABEL = "label"
    FIELDS = "fields"
    OTHER = "other"


_KINDS = {
    **dict.fromkeys(("jpg", "jpeg", "png", "webp"), Kind.IMAGE),
    **dict.fromkeys(("wav", "flac", "ogg", "mp3"), Kind.SOUND),
    "txt": Kind.TEXT,
    "npy": Kind.SIGNAL,
    "cls": Kind.LABEL,
    "json": Kind.FIELDS,
}


def kind_of(extension: str) -> Kind:
    """What a member is, by the last part of its extension: `fr.ogg` is a sound."""
    return _KINDS.get(extension.rpartition(".")[2], Kind.OTHER)


def captions(members: Mapping[str, bytes]) -> list[str]:
    """The captions of a sample, each once: its text members, and `caption` and `captions` of its JSON.

    Raises:
        BrokenMember: `invalid UTF-8`, `invalid JSON`.
    """
    found: list[Any] = []
    for extension in sorted(members):
        if kind_of(extension) is Kind.TEXT:
            found += read_field({"txt": members[extension]}, "txt")
        elif kind_of(extension) is Kind.FIELDS:
            fields = {"json": members[extension]}
            found += read_field(fields, "json.caption")
            found += read_field(fields, "json.captions") + read_field(fields, "json.captions.*")
    return list(dict.fromkeys(text for text in found if isinstance(text, str) and text.strip()))
