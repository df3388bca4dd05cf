"""SROIE: scanned receipts, with their words and four fields to be found."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmlab.sources.files import ReleasedFiles
from mmlab.sources.items import Item
from mmlab.sources.pages import Stretch, Word, about_words, letters, occurrences, place, split_line, tagged
from mmlab.sources.picture import reduce_picture
from mmlab.sources.released import Contents, Released
from mmlab.sources.split import TRAIN, split

FIELDS = ("company", "date", "address", "total")
_ENDINGS = {"box": "csv", "key": "json"}
_SIDES = 8
"""Numbers before the text of a line: x and y of four corners."""
_OTHER_TOTALS = (
    "sub", "qty", "quantity", "item", "gst", "tax", "discount", "saving", "change", "round", "exclud",
)  # fmt: skip
"""What stands beside a total that is not what is to be paid."""


class Sroie(Released):
    """Receipts with the company, date, address and total that are to be found (SROIE, Huang et al. 2019).

    A sample is a receipt (`jpg`): `json` has `words`, `boxes` (left, top, right and bottom of each word, as
    shares of the page), `glued` (numbers of words before which no space stands), `tags` (one for each word,
    by BIO), `fields` (the released values), `receipt_id` and `group` (itself).

    The release has boxes of lines; a word has the part of its line's box that its characters would fill if
    all were equally wide. Boxes that reach over the edge of the page are cut there, and counted. A field is
    tagged where its value stands, but for case, spaces and punctuation if it stands nowhere as it is: the
    first time, the total where its row says best that it is one. Values that stand nowhere are counted.

    The official test receipts are not in this release: the test split is a part of it, chosen by a hash.
    """

    name = "sroie"
    release = (
        "The release is the folder `data` of zzzDavid/ICDAR-2019-SROIE on GitHub: img/NNN.jpg, box/NNN.csv "
        "and key/NNN.json."
    )
    licence = "research use; receipts of ICDAR 2019's challenge"

    def __init__(
        self,
        *,
        val: float = 0.1,
        test: float = 0.2,
        seed: int = 0,
        max_side: int | None = 1024,
        from_file: Path | None = None,
        out: Path | None = None,
    ) -> None:
        """Settings.

        Args:
            val: Share of the receipts that is held out for validation.
            test: Share that is held out as the test split.
            seed: Another seed, another split.
            max_side: Larger pictures are reduced to this length in pixels; None: none are.
            from_file: Folder of the release.
            out: Folder to write; None: one in the cache directory.

        Raises:
            ValueError: Shares that there are not.
        """
        if not (0 <= val <= 1 and 0 <= test <= 1 and val + test <= 1):
            raise ValueError(f"val={val} and test={test} are shares of all receipts: from 0 to 1 together.")
        self.val = val
        self.test = test
        self.seed = seed
        settings = {"val": val, "test": test, "seed": seed}
        super().__init__(settings=settings, max_side=max_side, from_file=from_file, out=out)

    def annotations(self, files: ReleasedFiles) -> dict[str, str]:
        """The lines and the fields of every receipt; neither may be without the other."""
        found: dict[str, str] = {}
        for name in files.names:
            parts = name.split("/")
            number, _, ending = parts[-1].rpartition(".")
            if parts[-2:-1] in (["box"], ["key"]) and ending == _ENDINGS[parts[-2]]:
                ends = {f"{kind} {number}": f"{kind}/{number}.{end}" for kind, end in _ENDINGS.items()}
                found |= self.require(files, ends)
        if not found:
            raise self.refusal(files, "box/NNN.csv")
        return found

    def read(self, files: ReleasedFiles, annotations: Mapping[str, str]) -> Contents:
        """A line of a box file is four corners and its text, which may have commas."""
        counted: Counter[str] = Counter()
        items, marks = {}, {}
        for role, name in annotations.items():
            kind, _, number = role.partition(" ")
            if kind == "box":
                page = _page(files, name, number, counted)
                fields = files.parse(annotations[f"key {number}"], _fields)
                if page:
                    items[number] = _item(number, page, fields, counted)
                    text = " ".join(word.text for word in page)
                    marks[number] = [hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()]
        wanted = {"val": round(self.val * len(items)), "test": round(self.test * len(items))}
        homes = split({number: number for number in items}, marks=marks, held_out=wanted, seed=self.seed)
        splits: dict[str, list[Item]] = {part: [] for part in (TRAIN, *wanted)}
        for number, home in homes.items():
            splits[home].append(items[number])
        return Contents(splits, +counted)


def _page(files: ReleasedFiles, name: str, number: str, counted: Counter[str]) -> list[Word]:
    """The words of a receipt; none where it has no picture, and so no size."""
    picture = files.find(f"img/{number}.jpg")
    if picture is None:
        counted["receipts without a picture"] += 1
        return []
    try:
        size = reduce_picture(files.read(picture), None).size
    except ValueError:
        counted["receipts with a broken picture"] += 1
        return []
    words: list[Word] = []
    for line, text in enumerate(_text(files.read(name)).split("\n"), start=1):
        if text.strip():
            with files.naming(name, line):
                corners, transcript = _line(text.rstrip("\r"))
            box, inside = place(_around(corners), size=size)
            counted["lines that reach over the edge of their page (cut there)"] += not inside
            words += split_line(transcript, box)
    counted["receipts without words"] += not words
    return words


def _text(content: bytes) -> str:
    """Most files are plain ASCII; letters with accents come in either encoding."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


class _Line(NamedTuple):
    corners: list[int]
    text: str


def _line(text: str) -> _Line:
    cells = text.split(",", _SIDES)
    if len(cells) <= _SIDES or not all(cell.strip().lstrip("-").isdecimal() for cell in cells[:_SIDES]):
        raise ValueError(f"{text[:60]!r} is not x1,y1,...,x4,y4,TEXT with whole numbers")
    return _Line([int(cell) for cell in cells[:_SIDES]], cells[_SIDES])


def _around(corners: Sequence[int]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom."""
    across, down = corners[::2], corners[1::2]
    return min(across), min(down), max(across), max(down)


def _fields(content: Any) -> dict[str, str]:
    """The released values that are there, without spaces around them."""
    found = {}
    for name in FIELDS:
        value = content.get(name, "")
        if not isinstance(value, str):
            raise ValueError(f'{name} is {json.dumps(value)[:40]}: it is text, "" where there is none')
        if value.strip():
            found[name] = value.strip()
    return found


def _item(number: str, page: Sequence[Word], fields: Mapping[str, str], counted: Counter[str]) -> Item:
    stretches = {}
    for name, value in fields.items():
        found = occurrences(page, value)
        if found:
            stretches[name] = _most_total(page, found) if name == "total" else found[0]
        else:
            counted[f"values of {name} that stand nowhere on their page (kept, without tags)"] += 1
    about = {
        **about_words(page), "tags": tagged(len(page), stretches), "fields": dict(fields),
        "receipt_id": number, "group": number,
    }  # fmt: skip
    return Item(key=number, about=about, media=(f"img/{number}.jpg",))


def _most_total(page: Sequence[Word], found: Sequence[Stretch]) -> Stretch:
    """The first whose row says total and no other kind of it, else that says total, else the first."""

    def support(stretch: Stretch) -> int:
        row = _row(page, stretch)
        return ("total" in row) * (1 + all(other not in row for other in _OTHER_TOTALS))

    return max(found, key=support)


def _row(page: Sequence[Word], stretch: Stretch) -> str:
    """The letters of all words whose middle is at the height of a stretch."""
    top, bottom = page[stretch.start].box.top, page[stretch.start].box.bottom
    return letters("".join(w.text for w in page if top <= (w.box.top + w.box.bottom) / 2 <= bottom))
