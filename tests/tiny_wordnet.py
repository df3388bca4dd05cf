"""A WordNet of a few nouns, in the format of the released one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple


class Noun(NamedTuple):
    """A sense: the words that mean it, and the senses that it is a kind of."""

    words: Sequence[str]
    kind_of: Sequence[str] = ()
    instance_of: Sequence[str] = ()


def write_wordnet(folder: Path, nouns: Mapping[str, Noun], *, exceptions: str = "") -> dict[str, int]:
    """Write the three files; returns the place of each sense. Of a word, senses written first come first."""
    licence = "  1 This software and database is being provided to you, the LICENSEE.  \n"

    def line(name: str, places: Mapping[str, int]) -> str:
        noun = nouns[name]
        words = [part for word in noun.words for part in (word, "0")]
        pointers = [("@", other) for other in noun.kind_of] + [("@i", other) for other in noun.instance_of]
        # Pointers of other kinds stand between them in the real files, as this one does.
        parts = ["~ 00000099 n 0000", *(f"{kind} {places[other]:08} n 0000" for kind, other in pointers)]
        words_and_pointers = f"{len(noun.words):02x} {' '.join(words)} {len(parts):03} {' '.join(parts)}"
        return f"{places[name]:08} 03 n {words_and_pointers} | it is | said \n"

    nowhere = dict.fromkeys(nouns, 0)
    place, places = len(licence), {}
    for name in nouns:
        places[name] = place
        place += len(line(name, nowhere))
    index: dict[str, list[int]] = defaultdict(list)
    for name, noun in nouns.items():
        for word in noun.words:
            index[word.lower()].append(places[name])
    entries = [
        f"{word} n {len(found)} 2 @ ~ {len(found)} 0 {' '.join(f'{place:08}' for place in found)}  \n"
        for word, found in sorted(index.items())
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.noun").write_text(licence + "".join(entries), encoding="utf-8")
    (folder / "data.noun").write_text(
        licence + "".join(line(name, places) for name in nouns), encoding="utf-8"
    )
    (folder / "noun.exc").write_text(exceptions, encoding="utf-8")
    return places
