"""How much of what was said differs: a model that says the same of every sample shows here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from mmlab.metrics.ngrams import Words
from mmlab.metrics.ptb import ptb_tokens
from mmlab.metrics.text import Answered, TextScore


def distinct(said: Sequence[Words], *, length: int) -> float:
    """Different n-grams of all answers over the number of their words (Li et al. 2016).

    Others divide by the number of n-grams. 0 where no word was said. It falls with the number of answers, so
    it is comparable on as many samples only.
    """
    ngrams = {ngram for words in said for ngram in zip(*(words[k:] for k in range(length)), strict=False)}
    return len(ngrams) / max(1, sum(len(words) for words in said))


def repeated(said: Sequence[Words]) -> float:
    """Share of answers whose words another sample's answer has, too, in the same order."""
    counts = Counter(tuple(words) for words in said)
    return sum(count for count in counts.values() if count > 1) / len(said)


class DiversityScores(TextScore):
    """How diverse answers are, and how long. References play no part."""

    of_references = False

    def __call__(self, answers: Sequence[Answered]) -> dict[str, float]:
        """`distinct_1` and `distinct_2`, `mean_words`, `repeated`; words are those of :func:`ptb_tokens`."""
        said = [ptb_tokens(one.prediction) for one in answers]
        return {
            "distinct_1": distinct(said, length=1),
            "distinct_2": distinct(said, length=2),
            "mean_words": sum(len(words) for words in said) / len(said),
            "repeated": repeated(said),
        }
