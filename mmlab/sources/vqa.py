"""VQA: questions about COCO's photographs, with ten answers each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mmlab.sources.coco import coco_picture
from mmlab.sources.files import ReleasedFiles
from mmlab.sources.questions import Question, hold_out_pictures, question_items
from mmlab.sources.released import Contents, Released

_PARTS = ("train2014", "val2014")
_UNANSWERED = "test2015"


class Vqa(Released):
    """Questions about COCO's photographs, with ten answers each (VQAv2, Goyal et al. 2017).

    A sample of val and test is one question: `jpg`, and `json` with `question`, `answer` (the most frequent
    of ten), `answers` (all ten), `question_id`, `image_id`, `question_type`, `answer_type`, `group` (the
    photograph). One of train is a photograph with all its `questions`. Test is the official val; val is
    photographs held out of train. Where the release has the questions of test2015, they are a split of this
    name without answers, for the evaluation server. The first VQA and OK-VQA have the same format and are
    read as well.
    """

    name = "vqa"
    release = (
        "The release is on visualqa.org: the zips of questions and annotations for train and val, unpacked "
        "into one folder with COCO's photographs (train2014.zip and val2014.zip, or those of 2017)."
    )
    licence = "annotations CC BY 4.0; photographs under the Creative Commons licences of their Flickr pages"

    def __init__(
        self,
        *,
        val: int = 1000,
        per_picture: bool = True,
        max_side: int | None = 512,
        from_file: Path | None = None,
        out: Path | None = None,
    ) -> None:
        """Settings.

        Args:
            val: Number of training photographs that are held out, with all their questions.
            per_picture: Whether a training sample is a photograph with all its questions, or one question.
            max_side: Larger photographs are reduced to this length in pixels; None: none are.
            from_file: Folder of the release.
            out: Folder to write; None: one in the cache directory.
        """
        self.val = val
        self.per_picture = per_picture
        settings = {"val": val, "per_picture": per_picture}
        super().__init__(settings=settings, max_side=max_side, from_file=from_file, out=out)

    def annotations(self, files: ReleasedFiles) -> dict[str, str]:
        """Questions and answers of train and val, or of one of them, and the questions of test2015."""
        wanted: dict[str, tuple[str, str]] = {}
        for part in _PARTS:
            questions = f"OpenEnded_mscoco_{part}_questions.json"
            answers = f"mscoco_{part}_annotations.json"
            wanted[f"{part} questions"] = (f"v2_{questions}", questions)
            wanted[f"{part} answers"] = (f"v2_{answers}", answers)
        there = {part for part in _PARTS if any(map(files.find, wanted[f"{part} questions"]))}
        found = self.require(
            files, {role: ends for role, ends in wanted.items() if not there or role.split()[0] in there}
        )
        if (name := files.find(f"v2_OpenEnded_mscoco_{_UNANSWERED}_questions.json")) is not None:
            found[f"{_UNANSWERED} questions"] = name
        return found

    def read(self, files: ReleasedFiles, annotations: Mapping[str, str]) -> Contents:
        """Answers belong to questions by their identifiers."""
        left_out: Counter[str] = Counter()
        read = {}
        for part in (*_PARTS, _UNANSWERED):
            if f"{part} questions" in annotations:
                asked = files.parse(annotations[f"{part} questions"], partial(_questions, files, part))
                if part != _UNANSWERED:
                    every = len(asked)
                    asked = files.parse(annotations[f"{part} answers"], partial(_answered, asked))
                    left_out["questions without answers"] += every - len(asked)
                read[part] = list(asked.values())
        train, test = _PARTS
        splits = hold_out_pictures(read[train], self.val) if train in read else {}
        for name, part in (("test", test), (_UNANSWERED, _UNANSWERED)):
            if part in read:
                splits[name] = read[part]
        return Contents(question_items(splits, per_picture=self.per_picture), +left_out)


def _questions(files: ReleasedFiles, part: str, content: Any) -> dict[int, Question]:
    """The questions by identifier, without answers."""
    return {
        row["question_id"]: Question(
            question_id=row["question_id"],
            image_id=row["image_id"],
            picture=coco_picture(files, f"COCO_{part}_{row['image_id']:012}.jpg"),
            question=row["question"].strip(),
            answer=None,
        )
        for row in content["questions"]
    }


def _answered(asked: Mapping[int, Question], content: Any) -> dict[int, Question]:
    """The questions that have answers, with them, in their order."""
    found = {}
    for row in content["annotations"]:
        answers = tuple(answer["answer"] for answer in row["answers"])
        # OK-VQA does not say which answer is the most frequent one.
        answer = row.get("multiple_choice_answer") or Counter(answers).most_common(1)[0][0]
        kind = {key: row[key] for key in ("question_type", "answer_type")}
        question = asked[row["question_id"]]
        found[question.question_id] = question._replace(answer=answer, answers=answers, kind=kind)
    return {identifier: found[identifier] for identifier in asked if identifier in found}
