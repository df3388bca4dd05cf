"""NLVR: statements about drawings of three boxes, true or false."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from mmlab.sources.files import ReleasedFiles
from mmlab.sources.items import Item
from mmlab.sources.released import Contents, Released
from mmlab.sources.split import TRAIN, split

_ORDERS = tuple(permutations(range(3)))
"""Which released box stands at each place of drawing k. Seen in the pixels of all drawings 0 and 1 of dev and
test; the drawings 2 to 5 are numbered alike."""
_COLOURS = {"yellow": "yellow", "black": "black", "#0099ff": "blue"}
_SIZES = {10: "small", 20: "medium", 30: "large"}


class _Statement(NamedTuple):
    identifier: str
    """`<sentence>-<scene>`: up to four scenes go with a sentence."""
    sentence: str
    label: str
    boxes: tuple[tuple[str, ...], ...]
    """What is in each box, in words, from top to bottom."""

    @property
    def sentence_id(self) -> str:
        return self.identifier.rpartition("-")[0]


class Nlvr(Released):
    """Statements about drawings of three boxes with coloured shapes, true or false (NLVR, Suhr et al. 2017).

    A sample is one drawing (`png`, 400 x 100 pixels) with its statement. Drawings of one scene differ in the
    order of the boxes: the full release has six of each. `json` has `statement`, `answer` (true, false),
    `scene` (what the drawing shows, in words, box by box from the left), `identifier` (of the drawing),
    `group` (of statement and scene: equal for drawings that differ in the order of boxes only), `sentence_id`
    (equal for the scenes of one statement). 23 statements are in both of the released dev and test.
    """

    name = "nlvr"
    release = (
        "The release is the repository lil-lab/nlvr on GitHub, folder nlvr: train/, dev/ and test/, each "
        "with images/ and a JSON file of its name."
    )
    licence = "CC BY 4.0"

    def __init__(
        self,
        *,
        train: str | None = None,
        test: str = "dev",
        val: int = 25,
        drawings: int = 6,
        from_file: Path | None = None,
        out: Path | None = None,
    ) -> None:
        """Settings.

        Args:
            train: The released split to train on: `train`, `dev` or `test`; None: `train` where the release
                has it, else `test` (or `dev`, where that is tested on).
            test: The released split to test on.
            val: Number of statements that are held out of `train`, with all scenes.
            drawings: Of each scene at most, 1 to 6.
            from_file: The release: its folder, or a zip or tar of it.
            out: Folder to write; None: one in the cache directory.

        Raises:
            ValueError: `train` and `test` are the same, or `drawings` is out of range.
        """
        if train == test:
            raise ValueError(f"train and test are both the released {test}: name another for one of them.")
        if not 1 <= drawings <= len(_ORDERS):
            raise ValueError(f"drawings is {drawings}: a scene has from 1 to {len(_ORDERS)}.")
        self.train, self.test, self.val, self.drawings = train, test, val, drawings
        settings = {"train": train, "test": test, "val": val, "drawings": drawings}
        super().__init__(settings=settings, max_side=None, from_file=from_file, out=out)

    def annotations(self, files: ReleasedFiles) -> dict[str, str]:
        """The statements of the two released splits."""
        there = (part for part in ("train", "test", "dev") if files.find(f"{part}/{part}.json"))
        train = self.train or next((part for part in there if part != self.test), "train")
        parts = {TRAIN: train, "test": self.test}
        return self.require(files, {role: f"{part}/{part}.json" for role, part in parts.items()})

    def read(self, files: ReleasedFiles, annotations: Mapping[str, str]) -> Contents:
        """A line of the files is a statement with its scene."""
        read = {role: files.parse_lines(name, _statement) for role, name in annotations.items()}
        splits = {**self._hold_out(read[TRAIN]), "test": read["test"]}
        train = PurePosixPath(annotations[TRAIN]).stem
        released = {TRAIN: train, "val": train, "test": self.test}
        return Contents(
            {
                name: [item for said in statements for item in self._items(files, released[name], said)]
                for name, statements in splits.items()
            }
        )

    def _hold_out(self, statements: Sequence[_Statement]) -> dict[str, list[_Statement]]:
        """Divide into train and val; statements of the same words stay together."""
        labels = {said.identifier: said.sentence_id for said in statements}
        marks = {said.identifier: {said.sentence.casefold().strip(" .")} for said in statements}
        if not 0 <= self.val < (number := len(set(labels.values()))):
            raise ValueError(f"val is {self.val}: it takes from 0 to {number - 1} of {number} statements.")
        homes = split(labels, marks=marks, held_out={"val": self.val}, seed=0)
        return {part: [s for s in statements if homes[s.identifier] == part] for part in (TRAIN, "val")}

    def _items(self, files: ReleasedFiles, released: str, said: _Statement) -> list[Item]:
        """A sample for each drawing that is there; the first, where none is, to be counted as missing."""
        drawings = [f"{released}-{said.identifier}-{k}" for k in range(self.drawings)]
        there = [k for k, drawing in enumerate(drawings) if files.find(f"{drawing}.png") is not None]
        return [
            Item(
                key=drawings[k],
                about={
                    "statement": said.sentence,
                    "answer": said.label,
                    "scene": _scene([said.boxes[box] for box in _ORDERS[k]]),
                    "identifier": drawings[k],
                    "group": f"{released}-{said.identifier}",
                    "sentence_id": f"{released}-{said.sentence_id}",
                },
                media=(f"{drawings[k]}.png",),
            )
            for k in there or [0]
        ]


def _statement(line: str) -> _Statement:
    row = json.loads(line)
    label = row["label"].lower()
    if label not in ("true", "false"):
        raise ValueError(f"label {row['label']!r} is neither true nor false")
    if len(row["structured_rep"]) != len(_ORDERS[0]):
        raise ValueError(f"{len(row['structured_rep'])} boxes instead of {len(_ORDERS[0])}")
    boxes = tuple(
        tuple(map(_thing, sorted(box, key=lambda thing: (thing["y_loc"], thing["x_loc"]))))
        for box in row["structured_rep"]
    )
    return _Statement(row["identifier"], row["sentence"].strip(), label, boxes)


def _thing(thing: Mapping[str, Any]) -> str:
    """Size, colour, shape and upper left corner, in pixels of a box of 100 x 100."""
    size, colour = _SIZES[thing["size"]], _COLOURS[thing["color"].lower()]
    return f"{size} {colour} {thing['type']} at x {thing['x_loc']} y {thing['y_loc']}"


def _scene(boxes: Sequence[Sequence[str]]) -> str:
    return "; ".join(f"box {place}: {', '.join(box) or 'empty'}" for place, box in enumerate(boxes, start=1))
