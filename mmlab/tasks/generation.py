"""Generation: say what is seen or heard, or what comes next in a dialogue."""

from __future__ import annotations

from mmlab.metrics.captions import CaptionScores
from mmlab.metrics.text import TextScore
from mmlab.tasks.generative import GenerativeTask


class GenerationTask(GenerativeTask):
    """Trains a language model to describe and to reply, and compares what it says with what people said.

    The language, style or emotion that is wanted stands in the prompt, as a word of it or as a field of the
    sample.
    """

    def usual_scores(self) -> list[TextScore]:
        """BLEU, ROUGE-L, CIDEr."""
        return [CaptionScores()]
