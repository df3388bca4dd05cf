"""Named entities: which words of a text name a person, a place, a thing?"""

from __future__ import annotations

from torchmetrics import Metric

from mmlab.adaptation.policy import Policy
from mmlab.batch import Batch
from mmlab.metrics.entities import OUTSIDE, EntityScores
from mmlab.metrics.text import TextMetrics, TextScore
from mmlab.models.word_tagger import WordTagger
from mmlab.optim import Optimization
from mmlab.tasks.generative import Answer, beside
from mmlab.tasks.tagging import TaggingTask, check_tags, took_words


class ExtractionTask(TaggingTask):
    """Tags every word of a text, with or without a picture beside it.

    The right tags are the references of a sample, one for each word in their order
    (`data.loading.references: [json.tags]`). A sample without any is not scored; one with more or fewer tags
    than words is refused, in evaluation as in training.

    Args:
        model: It gives as many tags.
        tags: All there are, by BIO, BIOES or BILOU.
        optimization: Optimizer and learning-rate schedule.
        adaptation: Which parameters are trained.
        crf: Learn what may follow what (:class:`~mmlab.models.crf.TagField`), and decode whole sentences.
        constrained: Tell the likeliest tags of a sentence that keep to their scheme (no I behind an O), not
            the likeliest tag of each word.
        scores: What it is measured by; None: precision, recall and F1 of entities.

    Raises:
        ValueError: A tag is none or there twice, the model gives more or fewer, or `constrained` would never
            let one be told (:func:`~mmlab.tasks.tagging.scheme`).
    """

    def __init__(
        self,
        model: WordTagger,
        *,
        tags: list[str],
        optimization: Optimization,
        adaptation: Policy,
        crf: bool = False,
        constrained: bool = True,
        scores: list[TextScore] | None = None,
    ) -> None:
        super().__init__(
            model, tags=tags, optimization=optimization, adaptation=adaptation, crf=crf,
            constrained=constrained,
        )  # fmt: skip
        self.scores = [EntityScores()] if scores is None else scores

    def make_metrics(self) -> Metric:
        """The scores of this task."""
        return TextMetrics(self.scores)

    def update_metrics(self, metrics: Metric, batch: Batch) -> None:
        """Keep the tags of a batch beside the right ones."""
        answers = self.predict(batch)
        told = beside(answers, batch)
        assert batch.text is not None, "the model has read words"
        there, taken = batch.text.present.tolist(), took_words(batch.text)
        for number, (answer, one) in enumerate(zip(answers, told, strict=True)):
            if there[answer.sample] or not taken:
                check_tags(answer.key, one.references, len(one.prediction.split()), self.tags)
            else:  # its text was taken away
                told[number] = one._replace(prediction=" ".join([OUTSIDE] * len(one.references)))
        metrics.update(
            [one._replace(references=(" ".join(one.references),)) if one.references else one for one in told]
        )

    def predict(self, batch: Batch) -> list[Answer]:
        """The tags of each valid sample, joined by spaces."""
        return [
            Answer(one.sample, batch.keys[one.sample], one.place, " ".join(one.tags))
            for one in self.tell(batch)
        ]
