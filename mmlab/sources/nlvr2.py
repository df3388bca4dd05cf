"""NLVR2: statements about pairs of photographs, true or false."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from mmlab.sources.files import ReleasedFiles
from mmlab.sources.items import Item
from mmlab.sources.released import Contents, Released

_SPLITS = {"train": "train", "val": "dev", "test": "test1"}


class Nlvr2(Released):
    """Statements about pairs of photographs, true or false (NLVR2, Suhr et al. 2019).

    A sample is a statement with its left and right photograph (`0.png` and `1.png`, or jpg where they are
    JPEGs): `json` has `statement`, `answer` (true, false), `identifier`, `group` (equal for the pairs that go
    with one sentence, over which consistency is measured). Train, val (the released dev) and test (test1) are
    the released ones.
    """

    name = "nlvr2"
    release = (
        "The release is the repository lil-lab/nlvr on GitHub, folder nlvr2/data (train.json, dev.json, "
        "test1.json), with the photographs that its README tells how to get."
    )
    licence = "annotations CC BY 4.0; photographs under licences of their own"

    def __init__(
        self, *, max_side: int | None = 512, from_file: Path | None = None, out: Path | None = None
    ) -> None:
        """Settings.

        Args:
            max_side: Larger photographs are reduced to this length in pixels; None: none are.
            from_file: Folder of the release, the photographs anywhere in it.
            out: Folder to write; None: one in the cache directory.
        """
        super().__init__(settings={}, max_side=max_side, from_file=from_file, out=out)

    def annotations(self, files: ReleasedFiles) -> dict[str, str]:
        """The statements of the three splits."""
        ends = {name: (f"nlvr2/data/{part}.json", f"{part}.json") for name, part in _SPLITS.items()}
        return self.require(files, ends)

    def read(self, files: ReleasedFiles, annotations: Mapping[str, str]) -> Contents:
        """A line of the files is a statement with the identifier that names its photographs."""
        return Contents({split: files.parse_lines(name, _item) for split, name in annotations.items()})


def _item(line: str) -> Item:
    row = json.loads(line)
    identifier, answer = row["identifier"], str(row["label"]).lower()
    if answer not in ("true", "false"):
        raise ValueError(f"label {row['label']!r} is neither true nor false")
    # split - set of photographs - pair - sentence
    split, photographs, pair, sentence = identifier.split("-")
    stem = f"{split}-{photographs}-{pair}"
    about = {
        "statement": row["sentence"].strip(), "answer": answer, "identifier": identifier,
        "group": f"{split}-{photographs}-{sentence}",
    }  # fmt: skip
    return Item(key=identifier, about=about, media=(f"{stem}-img0.png", f"{stem}-img1.png"))
