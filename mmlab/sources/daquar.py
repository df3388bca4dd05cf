"""DAQUAR: questions about photographs of rooms."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from mmlab.sources.files import ReleasedFiles
from mmlab.sources.questions import Question, hold_out_pictures, question_items
from mmlab.sources.released import Contents, Released

_PICTURE = re.compile(r"image ?(\d+)\b")
_AT_THE_END = re.compile(r"(?:\s+in (?:the |this )?image ?\d+)?\s*\?$")


class Daquar(Released):
    """Questions about photographs of rooms and the objects in them (DAQUAR, Malinowski and Fritz 2014).

    A sample of val and test is one question: `png`, and `json` with `question` (without the "in the image3"
    at its end), `answer` (several words are separated by ", "), `answers` (this one), `question_id`,
    `image_id`, `group` (the photograph). One of train is a photograph with all its `questions`. Train and
    test are the released ones; val is photographs held out of train.
    """

    name = "daquar"
    release = (
        "The release is on the page of DAQUAR at the Max Planck Institute for Informatics: "
        "qa.37.raw.train.txt and qa.37.raw.test.txt, with nyu_depth_images/ unpacked beside them."
    )
    licence = "research use"

    def __init__(
        self,
        *,
        classes: int = 37,
        val: int = 50,
        per_picture: bool = True,
        max_side: int | None = 512,
        from_file: Path | None = None,
        out: Path | None = None,
    ) -> None:
        """Settings.

        Args:
            classes: Of objects that answers are about: 37 or 894, as in the names of the released files.
            val: Number of training photographs that are held out, with all their questions.
            per_picture: Whether a training sample is a photograph with all its questions, or one question.
            max_side: Larger photographs are reduced to this length in pixels; None: none are.
            from_file: Folder of the release.
            out: Folder to write; None: one in the cache directory.
        """
        self.classes = classes
        self.val = val
        self.per_picture = per_picture
        settings = {"classes": classes, "val": val, "per_picture": per_picture}
        super().__init__(settings=settings, max_side=max_side, from_file=from_file, out=out)

    def annotations(self, files: ReleasedFiles) -> dict[str, str]:
        """The questions of train and test."""
        stem = f"qa.{self.classes}.raw"
        ends = {"train": f"{stem}.train.txt", "test": (f"{stem}.test.txt", f"{stem}.reduced.test.txt")}
        return self.require(files, ends)

    def read(self, files: ReleasedFiles, annotations: Mapping[str, str]) -> Contents:
        """A line is a question, and the next its answer."""
        left_out: Counter[str] = Counter()
        asked = {part: _questions(files, part, name, left_out) for part, name in annotations.items()}
        splits = {**hold_out_pictures(asked["train"], self.val), "test": asked["test"]}
        return Contents(question_items(splits, per_picture=self.per_picture), left_out)


def _questions(files: ReleasedFiles, part: str, name: str, left_out: Counter[str]) -> list[Question]:
    lines = [line.strip() for line in files.lines(name)]
    with files.naming(name):
        if len(lines) % 2 == 1:
            raise ValueError(f"it has {len(lines)} lines, and needs one answer for each question")
    found = []
    for number, (question, answer) in enumerate(zip(lines[::2], lines[1::2], strict=True)):
        picture = _PICTURE.search(question)
        if picture is None or not answer:
            left_out["questions without a picture or an answer"] += 1
            continue
        found.append(
            Question(
                question_id=f"{part}-{number}",
                image_id=f"image{picture[1]}",
                picture=f"image{picture[1]}.png",
                question=_PICTURE.sub("image", _AT_THE_END.sub("?", question)),
                answer=answer,
                answers=(answer,),
            )
        )
    return found
