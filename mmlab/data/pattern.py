"""Members of a sample by name or pattern, and the order in which several are read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

_NUMBERED = re.compile(r"([0-9]+)\.[^.]*")
_DIGITS = re.compile(r"([0-9]+)")


def matching(members: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """The names that match any pattern, each once.

    In the order of the patterns, those of one pattern by name, in which 2 comes before 10. Numbered members
    (`0.jpg`, `1.png`) come last, by their numbers, whatever their pattern: they are a series.
    """
    found: dict[str, int] = {}
    for rank, pattern in enumerate(patterns):
        for name in members:
            if fnmatchcase(name, pattern):
                found.setdefault(name, rank)
    return sorted(found, key=lambda name: _place(name, found[name]))


def _place(name: str, rank: int) -> tuple[int, int, tuple[tuple[int, str], ...]]:
    numbered = _NUMBERED.fullmatch(name)
    if numbered is not None:
        return int(numbered[1][:18]) + 1, rank, ()
    parts = _DIGITS.split(name)  # texts and numbers by turns
    return 0, rank, tuple((int(p[:18]), p) if n % 2 else (0, p) for n, p in enumerate(parts))
