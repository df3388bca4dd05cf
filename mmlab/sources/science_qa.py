"""ScienceQA: multiple-choice questions from school, many with a picture, with lecture and solution."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmlab.sources.files import ReleasedFiles
from mmlab.sources.items import Item
from mmlab.sources.released import Contents, Released

_TOLD = ("hint", "lecture", "solution", "subject", "topic", "category", "grade")
"""Fields that a sample has where they are not empty."""


class ScienceQa(Released):
    """Multiple-choice questions of natural, social and language science (ScienceQA, Lu et al. 2022).

    A sample is a question, with its picture (`png`) where it has one: `json` has `question`, `choices`,
    `label` (the right one's place, from 0), `answer` (its text), `hint`, `lecture`, `solution`, `subject`,
    `topic`, `category`, `grade` where they are not empty, `question_id` and `group`. The splits are the
    released ones (12,726, 4,241 and 4,241 questions, about half of them with a picture).
    """

    name = "science_qa"
    release = (
        "The release is the repository lupantech/ScienceQA on GitHub: problems.json and pid_splits.json of "
        "data/scienceqa, with the pictures, images/SPLIT/NUMBER/image.png, unpacked beside them."
    )
    licence = "CC BY-NC-SA 4.0"

    def __init__(
        self,
        *,
        only_pictures: bool = False,
        max_side: int | None = 512,
        from_file: Path | None = None,
        out: Path | None = None,
    ) -> None:
        """Settings.

        Args:
            only_pictures: Leave out questions without a picture.
            max_side: Larger pictures are reduced to this length in pixels; None: none are.
            from_file: Folder of the release.
            out: Folder to write; None: one in the cache directory.
        """
        self.only_pictures = only_pictures
        super().__init__(
            settings={"only_pictures": only_pictures}, max_side=max_side, from_file=from_file, out=out
        )

    def annotations(self, files: ReleasedFiles) -> dict[str, str]:
        """Problems and splits."""
        return self.require(files, {"problems": "problems.json", "splits": "pid_splits.json"})

    def read(self, files: ReleasedFiles, annotations: Mapping[str, str]) -> Contents:
        """Problems are values of an object, by number; splits are lists of numbers."""
        splits = files.parse(
            annotations["splits"],
            lambda content: {split: list(map(str, content[split])) for split in ("train", "val", "test")},
        )

        def items(problems: Any) -> dict[str, list[Item]]:
            return {
                split: [_item(split, number, problems[number]) for number in numbers]
                for split, numbers in splits.items()
            }

        found = files.parse(annotations["problems"], items)
        if not self.only_pictures:
            return Contents(found)
        kept = {split: [item for item in problems if item.media] for split, problems in found.items()}
        without = sum(map(len, found.values())) - sum(map(len, kept.values()))
        return Contents(kept, {"questions without a picture": without})


def _item(split: str, number: str, problem: Mapping[str, Any]) -> Item:
    about = {
        "question": problem["question"].strip(),
        "choices": list(problem["choices"]),
        "label": problem["answer"],
        "answer": problem["choices"][problem["answer"]],
        **{field: text for field in _TOLD if (text := problem.get(field, "").strip())},
        "question_id": number,
        "group": number,
    }
    picture = problem["image"]
    return Item(key=number, about=about, media=(f"{split}/{number}/{picture}",) if picture else ())
