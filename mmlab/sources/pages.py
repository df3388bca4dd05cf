"""Words on a page: what is one, where it stands, and where a value stands among them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

_WORD = re.compile(r"\d+(?:[.,:/\-]\d+)*|[^\W\d_]+|[^\w\s]|\w")
"""A number with the marks inside it (12.50, 19/10/2018), a run of letters, or any other character alone."""
_DIGITS = 5
"""Of a share of the page: a hundredth of a pixel, of a thousand."""


class Box(NamedTuple):
    """Left, top, right and bottom, as shares of the page."""

    left: float
    top: float
    right: float
    bottom: float


class Word(NamedTuple):
    """A word of a page."""

    text: str
    box: Box
    glued: bool = False
    """Whether no space stands before it."""


class Placed(NamedTuple):
    """A box, and whether all of it was on the page."""

    box: Box
    inside: bool


def place(sides: Sequence[int | float], *, size: tuple[int, int]) -> Placed:
    """A box in pixels as shares of a page; what reaches over the edge is cut there.

    Args:
        sides: Left, top, right and bottom.
        size: Width and height of the page.
    """
    shares = [side / whole for side, whole in zip(sides, (*size, *size), strict=True)]
    cut = [min(max(share, 0.0), 1.0) for share in shares]
    return Placed(Box(*cut), cut == shares)


def split_line(text: str, box: Box) -> Iterator[Word]:
    """The words of a line of text, each with its part of the box, as if all characters were equally wide."""
    width = (box.right - box.left) / max(len(text), 1)
    end = 0
    for number, found in enumerate(_WORD.finditer(text)):
        left, right = box.left + found.start() * width, box.left + found.end() * width
        part = Box(left, box.top, min(right, box.right), box.bottom)
        yield Word(found[0], part, glued=number > 0 and found.start() == end)
        end = found.end()


def about_words(words: Sequence[Word]) -> dict[str, Any]:
    """What a sample says of its words: `words`, `boxes`, and `glued`, the numbers of those so."""
    return {
        "words": [word.text for word in words],
        "boxes": [[round(side, _DIGITS) for side in word.box] for word in words],
        "glued": [number for number, word in enumerate(words) if word.glued],
    }


class Stretch(NamedTuple):
    """Words that follow each other: the first, and the one behind the last."""

    start: int
    stop: int


def occurrences(words: Sequence[Word], value: str) -> list[Stretch]:
    """Where a value stands among words, whole ones at both ends, over several lines too.

    As it is but for spaces; where it is so nowhere, but for case and all that is no letter or digit too.
    """
    wanted = " ".join(value.split())
    printed = ["" if word.glued or number == 0 else " " for number, word in enumerate(words)]
    texts = [word.text for word in words]
    exact = _find(texts, printed, wanted) if wanted else []
    if exact or not letters(wanted):
        return exact
    loose = _find([letters(text) for text in texts], [""] * len(texts), letters(wanted))
    return [_with_marks(texts, found, wanted) for found in loose]


def letters(text: str) -> str:
    """The letters and digits of a text, in one case."""
    return "".join(letter for letter in text.casefold() if letter.isalnum())


def _find(texts: Sequence[str], before: Sequence[str], wanted: str) -> list[Stretch]:
    """Where texts, joined by what stands before each, make what is wanted; blank ones are at neither end."""
    starts: dict[int, int] = {}
    stops: dict[int, int] = {}
    joined, length = [], 0
    for number, (text, gap) in enumerate(zip(texts, before, strict=True)):
        joined += [gap, text]
        if text:
            starts[length + len(gap)] = number
            stops[length + len(gap) + len(text)] = number + 1
        length += len(gap) + len(text)
    whole = "".join(joined)
    found, at = [], whole.find(wanted)
    while at >= 0:
        if at in starts and at + len(wanted) in stops:
            found.append(Stretch(starts[at], stops[at + len(wanted)]))
        at = whole.find(wanted, at + 1)
    return found


def _with_marks(texts: Sequence[str], found: Stretch, wanted: str) -> Stretch:
    """The same with the mark before and behind, where the value begins and ends with it."""
    start, stop = found
    if start > 0 and not wanted[0].isalnum() and texts[start - 1] == wanted[0]:
        start -= 1
    if stop < len(texts) and not wanted[-1].isalnum() and texts[stop] == wanted[-1]:
        stop += 1
    return Stretch(start, stop)


def tagged(words: int, stretches: dict[str, Stretch]) -> list[str]:
    """The tags of so many words by BIO; of stretches that overlap the later ones win, whole."""
    tags = ["O"] * words
    for name, (start, stop) in stretches.items():
        for number in range(start, stop):
            if tags[number] != "O":
                taken = tags[number][2:]
                tags = ["O" if tag[2:] == taken else tag for tag in tags]
        tags[start:stop] = [f"B-{name}", *[f"I-{name}"] * (stop - start - 1)]
    return tags
