"""The accuracy of VQA: how many of the ten people asked gave the answer."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mmlab.metrics.text import Answered, TextScore, with_interval

_AGREEING = 3
"""Others who must have given an answer for it to count fully."""
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_PERIODS = 32
"""The official code passes `re.UNICODE`, 32, where the number of replacements stands."""
_ARTICLES = {"a", "an", "the"}
_NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6",
    "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
# The official table with its slip `somebodyd`, without the entries that no lower-case word can reach.
_APOSTROPHES = """
    aint=ain't arent=aren't cant=can't couldve=could've couldnt=couldn't couldn'tve=couldn't've
    couldnt've=couldn't've didnt=didn't doesnt=doesn't dont=don't hadnt=hadn't hadnt've=hadn't've
    hadn'tve=hadn't've hasnt=hasn't havent=haven't hed=he'd hed've=he'd've he'dve=he'd've hes=he's
    howd=how'd howll=how'll hows=how's isnt=isn't itd=it'd itd've=it'd've it'dve=it'd've itll=it'll
    maam=ma'am mightnt=mightn't mightnt've=mightn't've mightn'tve=mightn't've mightve=might've
    mustnt=mustn't mustve=must've neednt=needn't notve=not've oclock=o'clock oughtnt=oughtn't
    ow's'at='ow's'at 'ows'at='ow's'at 'ow'sat='ow's'at shant=shan't shed've=she'd've she'dve=she'd've
    shouldve=should've shouldnt=shouldn't shouldnt've=shouldn't've shouldn'tve=shouldn't've
    somebody'd=somebodyd somebodyd've=somebody'd've somebody'dve=somebody'd've somebodyll=somebody'll
    somebodys=somebody's someoned=someone'd someoned've=someone'd've someone'dve=someone'd've
    someonell=someone'll someones=someone's somethingd=something'd somethingd've=something'd've
    something'dve=something'd've somethingll=something'll thats=that's thered=there'd thered've=there'd've
    there'dve=there'd've therere=there're theres=there's theyd=they'd theyd've=they'd've
    they'dve=they'd've theyll=they'll theyre=they're theyve=they've twas='twas wasnt=wasn't wed've=we'd've
    we'dve=we'd've weve=we've werent=weren't whatll=what'll whatre=what're whats=what's whatve=what've
    whens=when's whered=where'd wheres=where's whereve=where've whod=who'd whod've=who'd've
    who'dve=who'd've wholl=who'll whos=who's whove=who've whyll=why'll whyre=why're whys=why's wont=won't
    wouldve=would've wouldnt=wouldn't wouldnt've=wouldn't've wouldn'tve=wouldn't've yall=y'all
    yall'll=y'all'll y'allll=y'all'll yall'd've=y'all'd've y'alld've=y'all'd've y'all'dve=y'all'd've
    youd=you'd youd've=you'd've you'dve=you'd've youll=you'll youre=you're youve=you've
"""
_CONTRACTIONS = dict(pair.split("=") for pair in _APOSTROPHES.split())


def normal_vqa_answer(text: str) -> str:
    """An answer without articles and most punctuation, with digits up to ten, apostrophes put back.

    A mark becomes a space; it vanishes where it stands beside a space anywhere in the text, and where the
    text has a comma between digits. (`processPunctuation` and `processDigitArticle` of the official
    `vqaEval.py`, https://github.com/GT-Vision-Lab/VQA, revision a013f00.)
    """
    numeric = _COMMA_IN_NUMBER.search(text) is not None
    plain = text
    for mark in _MARKS:
        vanishes = numeric or f"{mark} " in text or f" {mark}" in text
        plain = plain.replace(mark, "" if vanishes else " ")
    plain = _PERIOD.sub("", plain, count=_PERIODS)
    words = [_NUMBERS.get(word, word) for word in plain.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(prediction: str, references: Sequence[str]) -> float:
    """How well an answer agrees with people's (Antol et al. 2015, as the official code has it).

    Each person is left out in turn: min(n / 3, 1), where n of the others gave the answer; the mean of these.
    Answers are normalised only where people's differ: one that all gave must be met to the letter.

    With four answers or more this is the official number; the released sets have ten. With two or three, all
    others must agree instead of three of them, so that the answer that everyone gave scores 1 here too. A
    single answer says nothing of agreement: 1 where both are the same, normalised.

    Args:
        prediction: What was said.
        references: What people answered, at least one, the same as often as it was given.
    """
    said, people = _one_line(prediction), [_one_line(answer) for answer in references]
    if len(people) == 1 or len(set(people)) > 1:
        said, people = normal_vqa_answer(said), [normal_vqa_answer(answer) for answer in people]
    agree, others = people.count(said), len(people) - 1
    if others == 0:
        return float(agree)
    needed = min(_AGREEING, others)
    of_those = agree * min((agree - 1) / needed, 1.0)  # one of them is left out
    return (of_those + (len(people) - agree) * min(agree / needed, 1.0)) / len(people)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


class VqaScores(TextScore):
    """The accuracy of VQA, of VQAv2, OK-VQA and other sets with ten answers to a question.

    `data.loading.references: [json.answers]` brings all ten. See :func:`vqa_accuracy` for other numbers.
    """

    def __call__(self, answers: Sequence[Answered]) -> dict[str, float]:
        """`vqa_accuracy` with its interval."""
        values = [vqa_accuracy(one.prediction, one.references) for one in answers]
        return with_interval("vqa_accuracy", values, answers)

    def normal(self, text: str) -> str:
        """See :func:`normal_vqa_answer`."""
        return normal_vqa_answer(_one_line(text))
