"""Reasoning: is a statement true of what is seen?"""

from __future__ import annotations

from mmlab.metrics.text import StatementScores, TextScore
from mmlab.tasks.generative import GenerativeTask


class ReasoningTask(GenerativeTask):
    """Trains a language model to judge statements.

    Samples of one group (`data.loading.group_by`) are one statement about one scene, arranged in several
    ways: what is understood is judged alike in all of them.
    """

    def usual_scores(self) -> list[TextScore]:
        """Accuracy, and the share of groups that are judged rightly throughout."""
        return [StatementScores(letters=self.decoding.chooses)]
