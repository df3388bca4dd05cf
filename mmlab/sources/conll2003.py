"""CoNLL-2003: named entities in news, in English."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mmlab.sources.conll import bio, sentences
from mmlab.sources.files import ReleasedFiles
from mmlab.sources.items import Item
from mmlab.sources.released import Contents, Released
from mmlab.sources.split import TRAIN

_TAGS = bio("LOC", "MISC", "ORG", "PER")
_FILES = {
    TRAIN: ("eng.train", "train.txt"),
    "val": ("eng.testa", "valid.txt", "dev.txt"),
    "test": ("eng.testb", "test.txt"),
}
_DOCUMENT = "-DOCSTART-"


class Conll2003(Released):
    """Sentences of English news with their named entities (CoNLL-2003, Tjong Kim Sang and De Meulder 2003).

    A sample is a sentence: `json` has `words`, `tags` (one for each word: LOC, MISC, ORG, PER, by BIO; the
    release has IOB1 or BIO, and either becomes BIO) and `group` (the document). The splits are the released
    ones.
    """

    name = "conll2003"
    release = (
        "The release is eng.train, eng.testa and eng.testb, which the organizers' script makes of the "
        "Reuters corpus; train.txt, valid.txt and test.txt are other names of the same files."
    )
    licence = "research use; the text is that of the Reuters corpus"

    def __init__(self, *, from_file: Path | None = None, out: Path | None = None) -> None:
        """Settings.

        Args:
            from_file: Folder of the release.
            out: Folder to write; None: one in the cache directory.
        """
        super().__init__(settings={}, max_side=None, from_file=from_file, out=out)

    def annotations(self, files: ReleasedFiles) -> dict[str, str]:
        """A file for each split."""
        return self.require(files, _FILES)

    def read(self, files: ReleasedFiles, annotations: Mapping[str, str]) -> Contents:
        """A line is a word, its part of speech, its chunk and its tag."""
        return Contents({split: _items(files, split, name) for split, name in annotations.items()})


def _items(files: ReleasedFiles, split: str, name: str) -> list[Item]:
    document, items = 0, []
    for one in sentences(files, name, columns=4, tags=_TAGS, heading=lambda line: line.startswith(_DOCUMENT)):
        document += one.heading != ""
        about = {"words": one.words, "tags": to_bio(one.tags), "group": f"{split}-document-{document}"}
        items.append(Item(key=f"{split}-{one.number}", about=about))
    return items


def to_bio(tags: list[str]) -> list[str]:
    """Tags by IOB1, where B stands only between entities of one type, as BIO; BIO stays as it is."""
    found, last = [], "O"
    for tag in tags:
        begins = tag.startswith("I-") and last[2:] != tag[2:]
        found.append(f"B-{tag[2:]}" if begins else tag)
        last = tag
    return found
