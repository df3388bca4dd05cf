"""FUNSD: scanned forms, with their words and what is header, question and answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mmlab.sources.conll import bio
from mmlab.sources.files import ReleasedFiles
from mmlab.sources.held_out import at_most_a_tenth
from mmlab.sources.items import Item
from mmlab.sources.pages import Box, Word, about_words, place
from mmlab.sources.picture import reduce_picture
from mmlab.sources.released import Contents, Released
from mmlab.sources.split import TRAIN

_FOLDERS = {TRAIN: "training_data", "test": "testing_data"}
_TYPES = ("header", "question", "answer")
TAGS = bio(*_TYPES)


class Form(NamedTuple):
    """A form, read."""

    name: str
    words: list[Word]
    tags: list[str]


class Funsd(Released):
    """Scanned forms with their headers, questions and answers (FUNSD, Jaume et al. 2019, arXiv:1905.13538).

    A sample is a form (`png`): `json` has `words`, `boxes` (left, top, right and bottom of each word, as
    shares of the page), `glued` (none), `tags` (one for each word, by BIO: header, question, answer),
    `form_id` and `group` (itself). The test split is the released one (50 forms), val is held out of the 149
    of train. Boxes that reach over the edge of the page are cut there, and counted; blank words are passed
    over.
    """

    name = "funsd"
    release = (
        "The release is the folder `dataset` of dataset.zip from guillaumejaume.github.io/FUNSD: "
        "training_data and testing_data, each with annotations/*.json and images/*.png."
    )
    licence = "non-commercial research and education"

    def __init__(
        self,
        *,
        val: int = 15,
        max_side: int | None = 1024,
        from_file: Path | None = None,
        out: Path | None = None,
    ) -> None:
        """Settings.

        Args:
            val: Number of training forms that are held out for validation; of a small part of the release no
                more than a tenth.
            max_side: Larger pictures are reduced to this length in pixels; None: none are.
            from_file: Folder of the release.
            out: Folder to write; None: one in the cache directory.
        """
        self.val = val
        super().__init__(settings={"val": val}, max_side=max_side, from_file=from_file, out=out)

    def annotations(self, files: ReleasedFiles) -> dict[str, str]:
        """A file for each form."""
        found = {}
        for split, folder in _FOLDERS.items():
            for name in files.names:
                parts = name.split("/")
                if parts[-3:-1] == [folder, "annotations"] and parts[-1].endswith(".json"):
                    found[f"{split} {parts[-1].removesuffix('.json')}"] = name
            if not any(role.startswith(f"{split} ") for role in found):
                raise self.refusal(files, f"{folder}/annotations/*.json")
        return found

    def read(self, files: ReleasedFiles, annotations: Mapping[str, str]) -> Contents:
        """A form is a list of entities, each with its words."""
        counted: Counter[str] = Counter()
        forms: dict[str, list[Item]] = {split: [] for split in _FOLDERS}
        for role, name in annotations.items():
            split, _, form = role.partition(" ")
            picture = f"{_FOLDERS[split]}/images/{form}.png"
            size = _size(files, picture)
            if size is None:
                counted["forms without a picture that can be read"] += 1
                continue
            found = files.parse(name, partial(_form, form, size, counted))
            if found.words:
                about = {**about_words(found.words), "tags": found.tags, "form_id": form, "group": form}
                forms[split].append(Item(key=form, about=about, media=(picture,)))
            counted["forms without words"] += not found.words
        held_out = at_most_a_tenth(forms[TRAIN], self.val, label=lambda item: item.key, of="forms")
        return Contents({**held_out, "test": forms["test"]}, +counted)


def _size(files: ReleasedFiles, picture: str) -> tuple[int, int] | None:
    """Width and height of a picture, None where it cannot be read."""
    name = files.find(picture)
    try:
        return None if name is None else reduce_picture(files.read(name), None).size
    except ValueError:
        return None


def _form(name: str, size: tuple[int, int], counted: Counter[str], content: Any) -> Form:
    """The words of all entities, one entity after the other."""
    words: list[Word] = []
    tags: list[str] = []
    for entity in content["form"]:
        label = entity["label"]
        if label not in (*_TYPES, "other"):
            raise ValueError(f"entity {entity['id']} is {label!r}: it is {', '.join(_TYPES)} or other")
        inside = [word for word in entity["words"] if word["text"].strip()]
        for number, word in enumerate(inside):
            box, whole = _box(word["box"], entity["id"], size)
            counted["words that reach over the edge of their page (cut there)"] += not whole
            words.append(Word(word["text"].strip(), box))
            tags.append("O" if label == "other" else f"{'I' if number else 'B'}-{label}")
    return Form(name, words, tags)


def _box(found: Any, entity: Any, size: tuple[int, int]) -> tuple[Box, bool]:
    numbers = isinstance(found, list) and all(type(side) in (int, float) for side in found)
    if not numbers or len(found) != 4 or not (found[0] <= found[2] and found[1] <= found[3]):
        raise ValueError(f"entity {entity} has a word with the box {found}: it is left, top, right, bottom")
    return place(found, size=size)
