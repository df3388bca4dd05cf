"""Files of words and tags, a line for each word and a blank one after each sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from mmlab.sources.files import ReleasedFiles


class Sentence(NamedTuple):
    """The words of a sentence with their tags."""

    number: int
    """In its file, from 1."""
    words: list[str]
    tags: list[str]
    heading: str
    """The line before its words that is no word, such as `IMGID:17`; empty where there is none."""


def sentences(
    files: ReleasedFiles,
    name: str,
    *,
    columns: int,
    tags: frozenset[str],
    heading: Callable[[str], bool] = lambda line: False,
) -> Iterator[Sentence]:
    """Read a file.

    Args:
        files: The release.
        name: Of the file.
        columns: Of a line, parted by a tab or a space: the first is the word, the last its tag.
        tags: Those that there may be.
        heading: Whether a line is no word but stands before a sentence.

    Raises:
        ValueError: A line has more or fewer columns, or a tag that is none, or no word; the message says
            which line.
    """
    number, title = 0, ""
    words: list[str] = []
    found: list[str] = []
    for place, line in enumerate([*files.lines(name), ""], start=1):
        begins = heading(line)
        if words and (begins or not line.strip()):
            number += 1
            yield Sentence(number, words, found, title)
            words, found, title = [], [], ""
        if begins:
            title = line.strip()
        elif line.strip():
            with files.naming(name, place):
                cells = line.rstrip().split("\t" if "\t" in line else " ")
                if len(cells) != columns:
                    raise ValueError(f"{len(cells)} columns instead of {columns}")
                if not cells[0]:
                    raise ValueError("no word before its tag")
                if cells[-1] not in tags:
                    raise ValueError(f"{cells[-1]!r} is none of its tags")
            words.append(cells[0])
            found.append(cells[-1])


def bio(*types: str) -> frozenset[str]:
    """The tags of some types of entities by BIO."""
    return frozenset({"O", *(f"{letter}-{name}" for letter in "BI" for name in types)})
