"""The nouns of WordNet: what a word may mean, and how near two meanings are."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

_FILES = ("index.noun", "data.noun", "noun.exc")
_ENDINGS = (
    ("s", ""), ("ses", "s"), ("ves", "f"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"),
    ("men", "man"), ("ies", "y"),
)  # fmt: skip
"""Of plurals, and what stands there in the singular (morphy(7WN))."""
_HYPERNYMS = ("@", "@i")
"""Pointers to what a sense is a kind of, and what it is an instance of."""


class _Standing(NamedTuple):
    """Where a sense stands in the hierarchy."""

    above: dict[int, int]
    """Fewest steps up to each sense above, itself included."""
    shallow: int
    """Fewest steps to the top."""
    deep: int
    """Most steps to the top."""


class WordNet:
    """The nouns of WordNet, from its database files as released (wndb(5WN)).

    A sense is known by its place in `data.noun` in bytes. The numbers are those of NLTK, which the published
    scores were computed with, where it departs from the literature too.
    """

    def __init__(self, folder: Path) -> None:
        """Read the files.

        Args:
            folder: Holds `index.noun`, `data.noun` and `noun.exc`.

        Raises:
            ValueError: A file is missing, or they do not belong together.
        """
        if missing := [name for name in _FILES if not (folder / name).is_file()]:
            raise ValueError(
                f"{folder} does not hold the nouns of WordNet: {', '.join(missing)} missing.\n"
                "Name the folder that `mmlab assets fetch wordnet` prints, or another with these files."
            )
        self._data = (folder / "data.noun").read_bytes()
        # Their first lines, which begin with a space, are the licence.
        index = (folder / "index.noun").read_text(encoding="utf-8").splitlines()
        self._index = {line.partition(" ")[0]: line for line in index if not line.startswith(" ")}
        exceptions = (folder / "noun.exc").read_text(encoding="utf-8").splitlines()
        self._exceptions = {plural: rest for plural, *rest in map(str.split, exceptions)}
        self._standings: dict[int, _Standing] = {}
        entries = [sense for word in list(self._index)[:1] for sense in self._senses(word)]
        if not entries or any(not self._data.startswith(b"%08d " % sense, sense) for sense in entries):
            raise ValueError(
                f"{folder}: data.noun is not the one that index.noun was made with.\n"
                "Take both as released; places count bytes, so no byte may be added, as at the ends of lines."
            )

    def senses(self, word: str) -> list[int]:
        """What a noun may mean, whatever its case, in the singular or in the plural.

        Args:
            word: Words of one noun are joined by underscores.
        """
        word = word.lower()
        plural = [word[: -len(end)] + singular for end, singular in _ENDINGS if word.endswith(end)]
        forms = dict.fromkeys([word, *self._exceptions.get(word, plural)])
        return [sense for form in forms if form in self._index for sense in self._senses(form)]

    def name(self, sense: int) -> str:
        """Such as `dog.n.01`: the first word of a sense, and which of this word's senses it is."""
        word = self._fields(sense)[4].lower()
        return f"{word}.n.{self._senses(word).index(sense) + 1:02}"

    def similarity(self, one: int, other: int) -> float:
        """How near two senses are (Wu and Palmer 1994), from 0 to 1, as NLTK's `wup_similarity` counts.

        With s the lowest sense above both, and d the number of senses on the way from it to the top, this is
        2 d / (steps from one to s + steps from the other to s + 2 d). Where ways to the top differ in length,
        the lowest is the one whose shortest way is longest, d counts the longest way, and steps are the
        fewest over anything above. Of several lowest ones s is `one` if it is among them, else the first by
        name: the order of the two can matter.
        """
        mine, others = self._standing(one), self._standing(other)
        shared = mine.above.keys() & others.above.keys()
        if not shared:
            return 0.0
        lowest = max(self._standing(sense).shallow for sense in shared)
        candidates = [sense for sense in shared if self._standing(sense).shallow == lowest]
        subsumer = one if one in candidates else min(candidates, key=self.name)
        depth = self._standing(subsumer).deep + 1
        return 2 * depth / (self._steps(one, subsumer) + self._steps(other, subsumer) + 2 * depth)

    def _senses(self, word: str) -> list[int]:
        """Of a word as the index has it, the most frequent sense first."""
        fields = self._index[word].split()
        return [int(place) for place in fields[-int(fields[2]) :]]

    def _fields(self, sense: int) -> list[str]:
        """What `data.noun` says of a sense, before its gloss."""
        line = self._data[sense : self._data.index(b"|", sense)]
        return line.decode("utf-8").split()

    def _hypernyms(self, sense: int) -> list[int]:
        fields = self._fields(sense)
        pointers = fields[5 + 2 * int(fields[3], 16) :]  # after the words and the number of pointers
        return [
            int(place)
            for kind, place in zip(pointers[::4], pointers[1::4], strict=True)
            if kind in _HYPERNYMS
        ]

    def _standing(self, sense: int) -> _Standing:
        if sense not in self._standings:
            standings = [self._standing(parent) for parent in self._hypernyms(sense)]
            above = {sense: 0}
            for standing in standings:
                for ancestor, steps in standing.above.items():
                    above[ancestor] = min(steps + 1, above.get(ancestor, steps + 1))
            self._standings[sense] = _Standing(
                above,
                shallow=1 + min((standing.shallow for standing in standings), default=-1),
                deep=1 + max((standing.deep for standing in standings), default=-1),
            )
        return self._standings[sense]

    def _steps(self, one: int, other: int) -> int:
        """The fewest steps from one sense to another, over anything above both."""
        mine, others = self._standing(one).above, self._standing(other).above
        return min(steps + others[sense] for sense, steps in mine.items() if sense in others)
