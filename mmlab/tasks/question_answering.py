"""Question answering: what is the answer to a question about a picture or a sound?"""

from __future__ import annotations

from mmlab.metrics.text import AnswerScores, ChoiceScores, TextScore
from mmlab.tasks.generative import GenerativeTask


class QuestionAnsweringTask(GenerativeTask):
    """Trains a language model to answer questions, and compares its answers with the right ones."""

    def usual_scores(self) -> list[TextScore]:
        """Exact match and token F1 over words (SQuAD); exact match by letters where the answer is chosen."""
        return [ChoiceScores() if self.decoding.chooses else AnswerScores()]
