"""MNRE: which relation holds between two entities of a post with a picture?"""

from __future__ import annotations

import ast
import json
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmlab.sources.files import ReleasedFiles
from mmlab.sources.items import Item
from mmlab.sources.released import Contents, Released
from mmlab.sources.split import TRAIN

_FILES = {
    TRAIN: ("ours_train.txt", "mnre_train.txt"),
    "val": ("ours_val.txt", "mnre_val.txt", "mnre_val .txt"),
    "test": ("ours_test.txt", "mnre_test.txt"),
}
"""As HVPNeT and others hand it on, and as the authors released it, with the space."""
RELATIONS = frozenset({
    "None", "/per/per/parent", "/per/per/siblings", "/per/per/couple", "/per/per/neighbor", "/per/per/peer",
    "/per/per/charges", "/per/per/alumi", "/per/per/alternate_names", "/per/org/member_of",
    "/per/loc/place_of_residence", "/per/loc/place_of_birth", "/org/org/alternate_names",
    "/org/org/subsidiary", "/org/loc/locate_at", "/loc/loc/contain", "/per/misc/present_in",
    "/per/misc/awarded", "/per/misc/race", "/per/misc/religion", "/per/misc/nationality",
    "/misc/misc/part_of", "/misc/loc/held_on",
})  # fmt: skip
"""Of version 2, with that of no relation."""
_LINE = 2**16
"""Letters: what is longer is no post, and parsing it takes long."""
_LIMIT = 0.01
"""Share of lines whose entities are not among their words above which it is not the release."""


class Mnre(Released):
    """Relations between two entities of a post, with its picture (MNRE, Zheng et al. 2021), version 2.

    A sample is a pair of entities in a post: `json` has `words`, `head` and `tail` (each the place of its
    first word and of the word behind its last), `relation` (one of 23, such as `/per/per/couple`, or `None`),
    `image_id` and `group` (the picture: a post has several pairs). The picture is `jpg`; a pair whose picture
    is missing or broken is a sample without one. The splits are the released ones (12,247, 1,624 and 1,614).
    """

    name = "mnre"
    release = (
        "The release is mnre_txt (mnre_train.txt, mnre_val.txt, mnre_test.txt) of thecharm/MNRE on GitHub, "
        "version 2, or ours_train.txt, ours_val.txt, ours_test.txt of HVPNeT; beside it the pictures: "
        "img_org/train/ID.jpg and so on."
    )
    licence = "research use; posts and pictures of their authors"

    def __init__(
        self, *, max_side: int | None = 384, from_file: Path | None = None, out: Path | None = None
    ) -> None:
        """Settings.

        Args:
            max_side: Larger pictures are reduced to this length in pixels; None: none are.
            from_file: Folder of the release.
            out: Folder to write; None: one in the cache directory.
        """
        super().__init__(settings={}, max_side=max_side, from_file=from_file, out=out)

    def annotations(self, files: ReleasedFiles) -> dict[str, str]:
        """A file for each split."""
        return self.require(files, _FILES)

    def read(self, files: ReleasedFiles, annotations: Mapping[str, str]) -> Contents:
        """A line is a pair of entities, as Python or JSON writes an object.

        Raises:
            ValueError: A line is none, has a relation that there is not, or too many point beside words.
        """
        left_out: Counter[str] = Counter()
        splits, total = {}, 0
        for split, name in annotations.items():
            pairs = files.parse_lines(name, _pair)
            fitting = [pair for pair in pairs if _fits(pair)]
            if astray := len(pairs) - len(fitting):
                left_out["have an entity that is not among their words"] += astray
            total += len(pairs)
            splits[split] = [
                _item(files, split, number, pair) for number, pair in enumerate(fitting, start=1)
            ]
        if left_out.total() > _LIMIT * total:
            found = ", ".join(f"{number} {reason}" for reason, number in left_out.items())
            first = _first_astray(files, annotations)
            raise ValueError(
                f"{files.path} is not as released: of {total} lines, {found} (the first: {first}).\n"
                f"{self.release}"
            )
        return Contents(splits, left_out)


def _pair(line: str) -> dict[str, Any]:
    """What a line says."""
    fields = _parse(line)
    words, relation, image = fields["token"], fields["relation"], fields["img_id"]
    if not isinstance(words, list) or not words or not all(isinstance(text, str) for text in (*words, image)):
        raise ValueError("`token` is words, `img_id` is a name")
    if relation not in RELATIONS:
        raise ValueError(f"{relation!r} is none of the 23 relations of version 2")
    head, tail = (list(fields[end]["pos"]) for end in ("h", "t"))
    if not all(type(place) is int for place in (*head, *tail)):
        raise ValueError("`pos` is places of words")
    return {
        "words": words,
        "head": head,
        "tail": tail,
        "relation": relation,
        "image_id": image,
        "group": image,
    }


def _parse(line: str) -> Any:
    """An object as Python or JSON writes it; nothing in it is run."""
    if len(line) > _LINE:
        raise ValueError(f"{len(line)} letters, more than the {_LINE} allowed")
    if line.lstrip().startswith('{"'):
        return json.loads(line)
    try:
        with warnings.catch_warnings():
            # Python warns of odd literals, which mean what they mean.
            warnings.simplefilter("ignore")
            return ast.literal_eval(line.strip())
    except (SyntaxError, MemoryError) as error:  # of brackets nested without end
        raise ValueError(f"no object ({error})") from error


def _fits(pair: Mapping[str, Any]) -> bool:
    """Whether either entity is one or several of the words."""
    places: list[list[int]] = [pair["head"], pair["tail"]]
    return all(len(at) == 2 and 0 <= at[0] < at[1] <= len(pair["words"]) for at in places)


def _first_astray(files: ReleasedFiles, names: Mapping[str, str]) -> str:
    """File and line of the first pair with an entity that is not among its words."""
    return next(
        f"{name}, line {number}"
        for name in names.values()
        for number, line in enumerate(files.lines(name), start=1)
        if line.strip() and not _fits(_pair(line))
    )


def _item(files: ReleasedFiles, split: str, number: int, pair: Mapping[str, Any]) -> Item:
    image = pair["image_id"]
    picture = files.find(f"img_org/{split}/{image}") or image
    return Item(f"{split}-{number}", pair, media=(picture,), needs_media=False)
