"""What a language model said over a whole evaluation and all ranks, and the scores of it."""

from __future__ import annotations

import re
import string
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor
from torchmetrics import Metric

from mmlab import collectives
from mmlab.metrics.ranking import Scores, bootstrap_interval

_KINDS = 100
"""Most kinds of question that are scored apart: more would fill every table and log."""


class Answered(NamedTuple):
    """What was said of one sample, and what it may be."""

    place: int
    """See :attr:`mmlab.batch.Batch.place`."""
    prediction: str
    references: tuple[str, ...]
    group: str
    """Samples of one group (questions about one picture) are resampled together."""
    whole: str | None = None
    """All that was said, where the prediction is a part of it."""
    loss: float = 0.0
    """-log p of the right answer, summed over its tokens; 0 where no score asks for it."""
    tokens: int = 0
    """How many tokens that is."""
    source: str = ""
    """Name of the source, where the run reads several."""
    kind: str = ""
    """Kind of question, where the run reads it."""
    present: str = ""
    """The modalities that the sample has, joined by `+`."""


class TextScore(ABC):
    """Scores of all answers of an evaluation."""

    of_losses: ClassVar[bool] = False
    """Whether it scores how likely the right answers are, not what was said; evaluation then runs the model
    once more."""

    of_references: ClassVar[bool] = True
    """Whether it scores only what has references."""

    @abstractmethod
    def __call__(self, answers: Sequence[Answered]) -> dict[str, float]:
        """Numbers by name; of the main one an interval too, as `<name>_low` and `<name>_high`.

        Args:
            answers: At least one, in the order of their places; those that it :meth:`takes`.
        """

    def takes(self, answer: Answered) -> bool:
        """Whether an answer is one of those that it scores."""
        return answer.tokens > 0 if self.of_losses else bool(answer.references) or not self.of_references

    def normal(self, text: str) -> str:
        """What is compared of an answer: texts of one normal form are the same answer."""
        return normal_answer(text)


class TextMetrics(Metric):
    """Keeps what was said, and scores it when the evaluation is over.

    `compute` gathers the answers of all ranks and sorts them by place, so its numbers are the same on any
    number of ranks.
    """

    full_state_update = False

    def __init__(self, scores: Sequence[TextScore]) -> None:
        """Start empty."""
        super().__init__(sync_on_compute=False)
        self.scores = list(scores)
        self._answers: list[Answered] = []

    def reset(self) -> None:
        """Start anew."""
        super().reset()
        self._answers = []

    def update(self, answers: Sequence[Answered]) -> None:
        """Keep the answers of a batch."""
        self._answers += answers

    def answered(self) -> list[Answered]:
        """The answers of all ranks in the order of their places; every rank must call it."""
        gathered = {one.place: one for part in collectives.gather_objects(self._answers) for one in part}
        return [gathered[place] for place in sorted(gathered)]

    def compute(self) -> dict[str, float]:
        """All scores, each of the answers that it takes. Every rank must call it.

        Where there are several sources, `<name>@<source>` is what an evaluation of that source alone gives;
        `<name>@<kind>` likewise, for the 100 commonest kinds that are not called like a source. Where samples
        have different modalities, `<name>@<modality>+<modality>` is the score of those with just these.
        """
        answers = self.answered()
        found = self._scores(answers)
        sources = {one.source for one in answers} | {""}
        kinds = Counter(one.kind for one in answers if one.kind not in sources).most_common(_KINDS)
        shown = {kind for kind, _ in kinds}
        patterns = {one.present for one in answers}
        parts: dict[str, list[Answered]] = defaultdict(list)
        for one in answers:
            parts[one.source].append(one)
            if one.kind in shown:
                parts[one.kind].append(one)
            if len(patterns) > 1 and one.present not in sources | shown:
                parts[one.present].append(one)
        for part in sorted(parts.keys() - {""}):
            found |= {f"{name}@{part}": value for name, value in self._scores(parts[part]).items()}
        return found

    def _scores(self, answers: Sequence[Answered]) -> dict[str, float]:
        found: dict[str, float] = {}
        for score in self.scores:
            scored = [one for one in answers if score.takes(one)]
            if scored:
                found |= score(scored)
        return found


def groups(answers: Sequence[Answered]) -> Int64[Tensor, " answers"]:
    """The groups of answers, numbered."""
    numbers = {group: number for number, group in enumerate(dict.fromkeys(one.group for one in answers))}
    return torch.tensor([numbers[one.group] for one in answers])


def with_interval(name: str, values: Sequence[float], answers: Sequence[Answered]) -> dict[str, float]:
    """The mean of a score, and its 95 % interval over groups of samples."""
    value = torch.tensor(values, dtype=torch.float64)
    interval = bootstrap_interval([Scores(value, groups(answers))], seed=0)
    return {name: float(value.mean()), f"{name}_low": interval.low, f"{name}_high": interval.high}


_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normal_answer(text: str) -> str:
    """An answer without case, punctuation, articles and spare spaces, as SQuAD's evaluation has it."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, reference: str) -> float:
    """1 where both are the same but for what :func:`normal_answer` takes out."""
    return float(normal_answer(prediction) == normal_answer(reference))


def token_f1(prediction: str, reference: str) -> float:
    """Harmonic mean of precision and recall over words (Rajpurkar et al. 2016).

    Where either has no word, it is 1 if both have none.
    """
    said, right = normal_answer(prediction).split(), normal_answer(reference).split()
    if not said or not right:
        return float(said == right)
    shared = sum((Counter(said) & Counter(right)).values())
    return 2 * shared / (len(said) + len(right))


class AnswerScores(TextScore):
    """Exact match and token F1, each the best over the references of a sample (SQuAD)."""

    def __call__(self, answers: Sequence[Answered]) -> dict[str, float]:
        """`exact_match` with its interval, and `token_f1`."""
        exact = [max(exact_match(one.prediction, right) for right in one.references) for one in answers]
        f1 = [max(token_f1(one.prediction, right) for right in one.references) for one in answers]
        return with_interval("exact_match", exact, answers) | {"token_f1": sum(f1) / len(f1)}


def same_letters(prediction: str, reference: str) -> float:
    """1 where both are the same but for spaces: choices can differ in a comma or a capital (ScienceQA)."""
    return float(prediction.split() == reference.split())


class ChoiceScores(TextScore):
    """Exact match where the answer is one of several choices, compared letter by letter."""

    def __call__(self, answers: Sequence[Answered]) -> dict[str, float]:
        """`exact_match` with its interval: what ScienceQA calls accuracy."""
        right = [max(same_letters(one.prediction, known) for known in one.references) for one in answers]
        return with_interval("exact_match", right, answers)

    def normal(self, text: str) -> str:
        """The text without spare spaces."""
        return " ".join(text.split())


class StatementScores(TextScore):
    """Accuracy of judgements, and how many hold in every arrangement of a scene (NLVR: Suhr et al. 2017).

    Args:
        letters: Compare letter by letter, as :class:`ChoiceScores`, not as SQuAD does.
    """

    def __init__(self, *, letters: bool = False) -> None:
        self.same = same_letters if letters else exact_match

    def __call__(self, answers: Sequence[Answered]) -> dict[str, float]:
        """`accuracy` and `consistency` (the share of groups that are right throughout), with intervals."""
        right = [max(self.same(one.prediction, known) for known in one.references) for one in answers]
        of_group: dict[str, float] = {}
        for one, value in zip(answers, right, strict=True):
            of_group[one.group] = min(value, of_group.get(one.group, 1.0))
        one_each = list({one.group: one for one in answers}.values())
        consistency = with_interval("consistency", list(of_group.values()), one_each)
        return with_interval("accuracy", right, answers) | consistency
