"""GQA: questions made from the scene graphs of photographs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmlab.sources.files import ReleasedFiles
from mmlab.sources.questions import Question, question_items
from mmlab.sources.released import Contents, Released
from mmlab.sources.split import TRAIN

_SPLITS = {TRAIN: "train", "val": "val", "test": "testdev"}


class Gqa(Released):
    """Questions made from the scene graphs of photographs, balanced (GQA, Hudson and Manning 2019).

    A sample of val and test is one question: `jpg`, and `json` with `question`, `answer`, `answers` (this
    one), `full_answer`, `question_id`, `image_id`, `question_type` (verify, query, choose, logical, compare),
    `group` (the photograph). One of train is a photograph with all its `questions`. Test is the official
    testdev.
    """

    name = "gqa"
    release = (
        "The release is on cs.stanford.edu/people/dorarad/gqa: the zips of questions (1.2) and images, "
        "unpacked into one folder."
    )
    licence = "CC BY 4.0"

    def __init__(
        self,
        *,
        per_picture: bool = True,
        max_side: int | None = 512,
        from_file: Path | None = None,
        out: Path | None = None,
    ) -> None:
        """Settings.

        Args:
            per_picture: Whether a training sample is a photograph with all its questions, or one question.
            max_side: Larger photographs are reduced to this length in pixels; None: none are.
            from_file: Folder of the release.
            out: Folder to write; None: one in the cache directory.
        """
        self.per_picture = per_picture
        super().__init__(
            settings={"per_picture": per_picture}, max_side=max_side, from_file=from_file, out=out
        )

    def annotations(self, files: ReleasedFiles) -> dict[str, str]:
        """The balanced questions of the three splits."""
        return self.require(
            files, {name: f"{part}_balanced_questions.json" for name, part in _SPLITS.items()}
        )

    def read(self, files: ReleasedFiles, annotations: Mapping[str, str]) -> Contents:
        """Questions are values of an object, by identifier."""
        asked = {split: files.parse(name, _questions) for split, name in annotations.items()}
        return Contents(question_items(asked, per_picture=self.per_picture))


def _questions(content: Any) -> list[Question]:
    return [
        Question(
            question_id=identifier,
            image_id=row["imageId"],
            picture=f"{row['imageId']}.jpg",
            question=row["question"],
            answer=row["answer"],
            answers=(row["answer"],),
            kind={"full_answer": row["fullAnswer"], "question_type": row["types"]["structural"]},
        )
        for identifier, row in content.items()
    ]
