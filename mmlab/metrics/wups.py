"""WUPS: an answer that means nearly the same counts nearly as much."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from math import prod
from pathlib import Path

from mmlab.assets import catalog
from mmlab.metrics.text import Answered, TextScore, with_interval
from mmlab.metrics.wordnet import WordNet

_FAR = 0.1
"""What is left of a likeness below the threshold."""


def noun_likeness(wordnet: WordNet, one: str, other: str) -> float:
    """How near the meanings of two nouns come, from 0 to 1.

    1 for the same word, known to WordNet or not; else the nearest of all pairs of their senses (Wu and Palmer
    1994), and 0 where either has none.
    """
    if one == other:
        return 1.0
    pairs = ((sense, another) for sense in wordnet.senses(one) for another in wordnet.senses(other))
    return max((wordnet.similarity(*pair) for pair in pairs), default=0.0)


def wups(
    prediction: str, reference: str, *, threshold: float, likeness: Callable[[str, str], float]
) -> float:
    """How well two answers agree, each one or several words between commas (Malinowski and Fritz 2014).

    Every word said should be near one of the right ones, and every right one near one of those said: the
    products of the best likenesses, and of these two products the smaller one. The order of words does not
    matter. A word that is there twice counts twice where it is not met exactly, and an empty answer is a word
    that is like itself alone, as in the authors' `calculate_wups.py`.

    Args:
        prediction: What was said.
        reference: What is right.
        threshold: Likenesses below it count a tenth.
        likeness: Of two words.
    """

    def measure(one: str, other: str) -> float:
        value = likeness(one, other)
        return value if value >= threshold else _FAR * value

    said, right = _words(prediction), _words(reference)
    return min(_found_in(said, right, measure), _found_in(right, said, measure))


def _words(answer: str) -> list[str]:
    return [word.strip() for word in answer.split(",")]


def _found_in(some: Sequence[str], others: Sequence[str], measure: Callable[[str, str], float]) -> float:
    return prod(max(measure(word, other) for other in others) for word in some)


class WupsScores(TextScore):
    """WUPS at 0.9 and at 0.0, the scores of DAQUAR (Malinowski and Fritz 2014).

    Words are looked up as they are said: those of one noun are joined by underscores, as in DAQUAR's answers,
    and a word with a full stop is none.

    Args:
        wordnet: Name of an asset, or a folder with WordNet's `index.noun`, `data.noun` and `noun.exc`.
    """

    def __init__(self, wordnet: str = "wordnet") -> None:
        folder = Path(wordnet).expanduser()
        self._wordnet = WordNet(folder if folder.is_dir() else catalog.resolve(wordnet) or folder)

    def __call__(self, answers: Sequence[Answered]) -> dict[str, float]:
        """`wups_0.9` with its interval, and `wups_0.0`; of several references the best counts."""
        likeness = cache(partial(noun_likeness, self._wordnet))
        at = {
            threshold: [
                max(
                    wups(one.prediction, right, threshold=threshold, likeness=likeness)
                    for right in one.references
                )
                for one in answers
            ]
            for threshold in (0.9, 0.0)
        }
        return with_interval("wups_0.9", at[0.9], answers) | {"wups_0.0": sum(at[0.0]) / len(answers)}
