"""Questions about pictures, and the samples that they become."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from mmlab.sources.held_out import hold_out
from mmlab.sources.items import Item
from mmlab.sources.split import TRAIN


class Question(NamedTuple):
    """A question about one picture."""

    question_id: int | str
    image_id: int | str
    picture: str
    """End of the picture's name in the release."""
    question: str
    answer: str | None
    """None where the answers were not released."""
    answers: tuple[str, ...] = ()
    """As released; where there is one only, that one."""
    kind: Mapping[str, Any] = {}
    """What else is known of it: `question_type`, `answer_type`, ..."""

    def about(self) -> dict[str, Any]:
        """Question, answers and identifier, as samples hold them."""
        fields: dict[str, Any] = {"question": self.question}
        if self.answer is not None:
            fields |= {"answer": self.answer, "answers": list(self.answers)}
        return fields | {"question_id": self.question_id}


def one_by_one(questions: Iterable[Question]) -> list[Item]:
    """A sample for each question, with `image_id` and the picture as `group`."""
    return [
        Item(
            key=str(asked.question_id),
            about={
                **asked.about(), "image_id": asked.image_id, **asked.kind, "group": str(asked.image_id),
            },
            media=(asked.picture,),
        )
        for asked in questions
    ]  # fmt: skip


def by_picture(questions: Iterable[Question]) -> list[Item]:
    """A sample for each picture, with `questions`, a list of what a sample of one question holds."""
    asked: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        asked[question.picture].append(question)
    return [
        Item(
            key=str(group[0].image_id),
            about={
                "image_id": group[0].image_id,
                "questions": [question.about() for question in group],
                "group": str(group[0].image_id),
            },
            media=(picture,),
        )
        for picture, group in asked.items()
    ]


def question_items(
    questions: Mapping[str, Sequence[Question]], *, per_picture: bool
) -> dict[str, list[Item]]:
    """The samples of each split: of train, if so wanted, one for each picture, else one for each question."""
    return {
        name: by_picture(asked) if per_picture and name == TRAIN else one_by_one(asked)
        for name, asked in questions.items()
    }


def hold_out_pictures(questions: Sequence[Question], number: int) -> dict[str, list[Question]]:
    """Divide questions into `train` and `val`, pictures chosen by a hash with all of their questions.

    Args:
        questions: All.
        number: Of pictures in val.

    Raises:
        ValueError: Nothing would be left to train on.
    """
    return hold_out(questions, number, label=lambda asked: asked.picture, of="pictures")
