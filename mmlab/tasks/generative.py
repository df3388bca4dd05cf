"""What tasks share in which a language model says the answer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from torchmetrics import Metric

from mmlab import collectives
from mmlab.adaptation.policy import Policy
from mmlab.batch import Batch, Modality
from mmlab.metrics.text import Answered, TextMetrics, TextScore
from mmlab.models.decoding import Choosing, Decoding, Likelihood, likelihood
from mmlab.models.multimodal_lm import MultimodalLM
from mmlab.objectives.loss import Loss
from mmlab.objectives.sequence import TokenCrossEntropy
from mmlab.optim import Optimization
from mmlab.tasks.base import BaseTask


class Answer(NamedTuple):
    """What the model said of one sample."""

    sample: int
    """Number in its batch."""
    key: str
    place: int
    """See :attr:`mmlab.batch.Batch.place`."""
    text: str
    """The answer."""
    whole: str | None = None
    """All that was said, where the answer is the end of it."""


def beside(answers: Sequence[Answer], batch: Batch) -> list[Answered]:
    """Answers beside what they may be."""
    patterns, group = batch.patterns(), batch.group.tolist()
    return [
        Answered(
            answer.place,
            answer.text,
            references=batch.references[answer.sample] if batch.references else (),
            group=str(group[answer.sample]),
            whole=answer.whole,
            source=batch.source_of(answer.sample),
            kind=batch.kind_of(answer.sample),
            present=patterns[answer.sample],
        )
        for answer in answers
    ]


class GenerativeTask(BaseTask):
    """Trains a language model to say answers, and measures what it says; a leaf says by what.

    Args:
        model: The language model and what it sees and hears.
        optimization: Optimizer and learning-rate schedule.
        adaptation: Which parameters are trained.
        scores: What answers are measured by; None: what is usual for the task.
        objective: The loss of the tokens to be said.
        decoding: How evaluation gets an answer: settings of generation, or of choosing among the choices that
            the prompts bring. None: the usual ones of generation.
        answer_after: What stands behind the last occurrence of this text in what was said is the answer that
            is scored and written, all of it where it does not occur. None: all of it.

    Raises:
        ValueError: Settings that do not go together.
    """

    model: MultimodalLM

    def __init__(
        self,
        model: MultimodalLM,
        *,
        optimization: Optimization,
        adaptation: Policy,
        scores: list[TextScore] | None = None,
        objective: TokenCrossEntropy | None = None,
        decoding: Decoding | Choosing | None = None,
        answer_after: str | None = None,
    ) -> None:
        super().__init__(model, optimization=optimization, adaptation=adaptation)
        self.objective = TokenCrossEntropy() if objective is None else objective
        self.decoding = Decoding() if decoding is None else decoding
        self.scores = self.usual_scores() if scores is None else scores
        self.answer_after = answer_after
        self._check_settings()

    def _check_settings(self) -> None:
        if self.answer_after == "":
            raise ValueError("answer_after is empty: give the text before the answer, or leave it out")
        of_losses = [type(score).__name__ for score in self.scores if score.of_losses]
        if self.decoding.chooses and of_losses:
            raise ValueError(
                f"scores: {of_losses[0]} needs prompts with the right answer, but decoding chooses among "
                "prompts with each choice: take it out, or give decoding settings of generation"
            )

    def setup(self, stage: str) -> None:
        """Refuse prompts that do not go with `decoding` or the model, and learn what ends an answer.

        Raises:
            ValueError: They bring choices and it does not choose, or the reverse; their tokenizer is that of
                another language model; they do not name what the model has a tower for.
        """
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        for reader in getattr(data, "readers", ()):  # other data show themselves at the first batch
            if reader.modality is Modality.TEXT:
                self.decoding.check(choices=getattr(reader, "choices", None) is not None)
                self._check_tokenizer(getattr(reader, "tokenizer", None))
                self.model.language.ends = tuple(getattr(reader, "ends", ()))
                if hasattr(reader, "named_media"):
                    self._check_media(reader.named_media())

    def _check_media(self, named: Collection[Modality]) -> None:
        for modality, _ in self.model.towers():
            if modality not in named:
                raise ValueError(
                    f"the model has a tower for {modality}, but no prompt names <{modality}>: add it to a "
                    f"prompt in data.text, or remove the tower `{modality}`"
                )

    def _check_tokenizer(self, tokenizer: str | None) -> None:
        language = self.model.language
        if tokenizer is not None and not language.reads(tokenizer):
            raise ValueError(
                f"data.text.tokenizer={tokenizer!r} has other token ids than the language model, "
                f"model.model.language.name={language.name!r}: set both to the same name"
            )

    @abstractmethod
    def usual_scores(self) -> list[TextScore]:
        """What answers of this task are measured by, given `decoding`."""

    def losses(self, batch: Batch) -> dict[str, Loss]:
        """The loss of the answers' tokens."""
        return {"answer": self.objective(self(batch))}

    def make_metrics(self) -> Metric:
        """The scores of this task."""
        return TextMetrics(self.scores)

    def update_metrics(self, metrics: Metric, batch: Batch) -> None:
        """Get answers, and keep them beside what they may be."""
        answers, known = self.predict(batch), self._likelihood(batch)
        answered = []
        for answer, one in zip(answers, beside(answers, batch), strict=True):
            if known is not None:  # what does not choose has one row for each sample
                loss = -float(known.log_probability[answer.sample])
                one = one._replace(loss=loss, tokens=int(known.tokens[answer.sample]))
            answered.append(one)
        metrics.update(answered)

    @torch.no_grad()
    def _likelihood(self, batch: Batch) -> Likelihood | None:
        """How likely the right answers are, where a score asks."""
        if not any(score.of_losses for score in self.scores):
            return None
        found = likelihood(self(batch), len(batch))
        return Likelihood(found.log_probability.cpu(), found.tokens.cpu())

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Answer]:
        """What the model says of each valid sample."""
        sharded = self.device_mesh is not None and collectives.world_size() > 1
        answers = []
        for sample, ids in self.decoding.answer(self.model, batch, together=sharded):
            text, whole = self.model.language.decode(ids), None
            if self.answer_after is not None:
                text, whole = text.rpartition(self.answer_after)[2].strip(), text
            answers.append(Answer(sample, batch.keys[sample], int(batch.place[sample]), text, whole))
        return answers
