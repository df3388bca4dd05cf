"""What a model learned without labels is good for: retrieval as it is, a linear probe, words told."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from mmlab.batch import Batch, Modality
from mmlab.metrics.probe import LinearProbe
from mmlab.metrics.retrieval import RetrievalMetrics
from mmlab.metrics.told_words import ToldWordScores, WordLogits


class PretrainingMetrics(RetrievalMetrics):
    """Retrieval in several directions, or in none, and besides a probe and the words that are told."""

    def __init__(self, directions: Sequence[tuple[Modality, Modality]]) -> None:
        """Start empty.

        Args:
            directions: As for :class:`RetrievalMetrics`; empty where vectors are not to be compared.
        """
        super().__init__(directions)
        self.probe = LinearProbe()
        self.guessed = ToldWordScores()
        self.said = ToldWordScores()

    def reset(self) -> None:
        """Start anew."""
        super().reset()
        for part in (self.probe, self.guessed, self.said):
            part.reset()

    def add(
        self,
        vectors: dict[str, Float[Tensor, "samples dim"]],
        guessed: WordLogits | None,
        said: WordLogits | None,
        batch: Batch,
    ) -> None:
        """Keep what is not for retrieval.

        Args:
            vectors: Of each sample, by the name of a modality, for the probe.
            guessed: Hidden words.
            said: Words after those before them.
            batch: Whose all that is.
        """
        self.probe.update(vectors, batch)
        for part, told in ((self.guessed, guessed), (self.said, said)):
            if told is not None:
                part.update(told)

    def compute(self) -> dict[str, float]:
        """Those of retrieval, `probe/...`, `masked/accuracy`, `masked/loss`, `captioning/...`."""
        found = super().compute() if self.directions else {}
        found |= self.probe.compute()
        for name, part in (("masked", self.guessed), ("captioning", self.said)):
            found |= {f"{name}/{score}": value for score, value in part.compute().items()}
        return found
