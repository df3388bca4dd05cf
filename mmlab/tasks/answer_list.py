"""Question answering over a list: which of these answers is it?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from mmlab.adaptation.policy import Policy
from mmlab.balance.balance import Balance, Criterion
from mmlab.batch import Batch
from mmlab.metrics.text import Answered, AnswerScores, TextMetrics, TextScore, normal_answer
from mmlab.models.fusion_classifier import FusionClassifier
from mmlab.objectives.classification import SoftCrossEntropy
from mmlab.optim import Optimization
from mmlab.tasks.fused import FusionTask
from mmlab.tasks.generative import Answer, beside


class AnswerList:
    """Answers that may be given; a reference is one of them if both have one normal form."""

    def __init__(self, answers: Sequence[str] | str, *, normal: Callable[[str], str] = normal_answer) -> None:
        """Read and check the answers.

        Args:
            answers: Themselves, or a text file with one on each line.
            normal: Gives the normal form; that of evaluation. (VQA's accuracy compares texts as they are
                where all people gave the same.)

        Raises:
            ValueError: There is no such file, no answer, a blank one, or two of one normal form.
        """
        self.answers = _lines(answers) if isinstance(answers, str) else tuple(answers)
        self._normal = normal
        self._number: dict[str, int] = {}
        if not self.answers:
            raise ValueError("answers: there is none; list those that may be given, or a file of them")
        for number, answer in enumerate(self.answers):
            if not answer.strip():
                raise ValueError(f"answers: number {number + 1} is blank: take it out")
            same = self._number.setdefault(normal(answer), number)
            if same != number:
                raise ValueError(
                    f"answers: {self.answers[same]!r} and {answer!r} (numbers {same + 1} and {number + 1}) "
                    "are one answer but for case, punctuation and articles: keep one"
                )

    def __len__(self) -> int:
        return len(self.answers)

    def find(self, reference: str) -> int | None:
        """The number of the answer that a reference is, or None."""
        return self._number.get(self._normal(reference))

    def targets(
        self, references: Sequence[Sequence[str]], *, device: torch.device
    ) -> Float[Tensor, "samples answers"]:
        """Of each sample, the share of its references that each answer has.

        Ten people's answers give tenths (VQA). References that are not in the list have no share: a row sums
        to less than 1, and to 0 where none is.
        """
        places: list[tuple[int, int]] = []
        shares: list[float] = []
        for sample, known in enumerate(references):
            for number, count in Counter(map(self.find, known)).items():
                if number is not None:
                    places.append((sample, number))
                    shares.append(count / len(known))
        rows, columns = torch.tensor(places, dtype=torch.int64, device=device).reshape(-1, 2).unbind(dim=1)
        target = torch.zeros(len(references), len(self), device=device)
        target[rows, columns] = torch.tensor(shares, device=device)
        return target

    def check(self, others: Sequence[str]) -> None:
        """Raise ValueError unless these are the same answers in the same order, letter by letter."""
        if tuple(others) == self.answers:
            return
        pairs = enumerate(zip_longest(others, self.answers), start=1)
        number, (there, here) = next((number, pair) for number, pair in pairs if pair[0] != pair[1])
        raise ValueError(
            f"the checkpoint was trained on other answers: number {number} is {there!r} there, {here!r} "
            "here: restore the list that it was trained on"
        )


def _lines(file: str) -> tuple[str, ...]:
    """The lines of a file, but blank ones."""
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"answers={file}: {error.__class__.__name__}: give a text file with one answer on each line, or "
            "the answers themselves"
        ) from error
    return tuple(line.strip() for line in text.splitlines() if line.strip())


class InList(TextScore):
    """`in_list`, the share of samples of which some answer is in the list: no more can be right."""

    def __init__(self, answers: AnswerList) -> None:
        """Take the list."""
        self.answers = answers

    def __call__(self, answers: Sequence[Answered]) -> dict[str, float]:
        """The share."""
        found = [any(self.answers.find(right) is not None for right in one.references) for one in answers]
        return {"in_list": sum(found) / len(found)}


def _checked(scores: list[TextScore]) -> list[TextScore]:
    """Raise ValueError for a score of what a classifier does not say."""
    for score in scores:
        if score.of_losses:
            raise ValueError(
                f"scores: {type(score).__name__} asks how likely a text is, which a classifier does not say: "
                "take it out"
            )
    return scores


class AnswerListTask(FusionTask):
    """Trains a classifier over a list of answers, and compares what it chooses with the right ones.

    It learns from the references of the training samples (`data.loading.references`). A sample whose
    references are all outside the list weighs nothing, and is wrong in evaluation.

    Args:
        model: Its head has a class for each answer.
        answers: Those that may be given, or a text file with one on each line.
        optimization: Optimizer and learning-rate schedule.
        adaptation: Which parameters are trained.
        scores: What answers are measured by; None: exact match and token F1 over words (SQuAD). The first
            also says which texts are one answer.
        objective: The loss.
        balance: Keeps one modality from being learned at the expense of the others; None: nothing does.

    Raises:
        ValueError: The answers are none, or not as many as the classes; see :class:`AnswerList`. A score of
            what a classifier does not say; a balance that does not go with the model.
    """

    learned = "answer"

    def __init__(
        self,
        model: FusionClassifier,
        *,
        answers: list[str] | str,
        optimization: Optimization,
        adaptation: Policy,
        scores: list[TextScore] | None = None,
        objective: SoftCrossEntropy | None = None,
        balance: Balance | None = None,
    ) -> None:
        super().__init__(model, optimization=optimization, adaptation=adaptation, balance=balance)
        self.scores = _checked([AnswerScores()] if scores is None else scores)
        self.answers = AnswerList(answers, normal=self.scores[0].normal if self.scores else normal_answer)
        self.objective = SoftCrossEntropy() if objective is None else objective
        if (found := model.head.classes) != (wanted := len(self.answers)):
            raise ValueError(f"the head has {found} classes for {wanted} answers: set classes to {wanted}")

    def criterion(self, batch: Batch) -> Criterion:
        """Cross-entropy towards the answers of each sample."""
        if not batch.references:
            raise ValueError("no answers to learn from: set data.loading.references (`[json.answers]`)")
        target = self.answers.targets(batch.references, device=batch.valid.device)
        target = target.masked_fill(~batch.valid[:, None], 0)
        return lambda logits, counts: self.objective(logits, target * counts[:, None], batch.place)

    def make_metrics(self) -> Metric:
        """The scores of this task, and how many samples the list can answer."""
        return TextMetrics([*self.scores, InList(self.answers)])

    def update_metrics(self, metrics: Metric, batch: Batch) -> None:
        """Keep the answers of a batch beside what they may be."""
        metrics.update(beside(self.predict(batch), batch))

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Answer]:
        """The likeliest answer of each valid sample."""
        said = self(batch)
        chosen, valid, place = (x.tolist() for x in (said.logits.argmax(dim=1), said.valid, said.place))
        return [
            Answer(sample, batch.keys[sample], place[sample], self.answers.answers[answer])
            for sample, answer in enumerate(chosen)
            if valid[sample]
        ]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the answers beside the weights."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["answers"] = list(self.answers.answers)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the weights of another list."""
        super().on_load_checkpoint(checkpoint)
        self.answers.check(checkpoint.get("answers", self.answers.answers))
