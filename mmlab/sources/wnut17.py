"""WNUT 2017: named entities that are new, in posts and comments."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mmlab.sources.conll import bio, sentences
from mmlab.sources.files import ReleasedFiles
from mmlab.sources.items import Item
from mmlab.sources.released import Contents, Released
from mmlab.sources.split import TRAIN

_TAGS = bio("corporation", "creative-work", "group", "location", "person", "product")


class Wnut17(Released):
    """Posts with their named entities, most of them new (WNUT 2017, Derczynski et al. 2017).

    A sample is a post: `json` has `words`, `tags` (one for each word, by BIO: corporation, creative-work,
    group, location, person, product) and `group` (itself). The splits are the released ones: 3,394, 1,009 and
    1,287 posts.
    """

    name = "wnut17"
    release = (
        "The release is the repository leondz/emerging_entities_17 on GitHub: wnut17train.conll, "
        "emerging.dev.conll and emerging.test.annotated."
    )
    licence = "CC BY 4.0"

    def __init__(self, *, from_file: Path | None = None, out: Path | None = None) -> None:
        """Settings.

        Args:
            from_file: Folder of the release.
            out: Folder to write; None: one in the cache directory.
        """
        super().__init__(settings={}, max_side=None, from_file=from_file, out=out)

    def annotations(self, files: ReleasedFiles) -> dict[str, str]:
        """A file for each split."""
        return self.require(
            files,
            {TRAIN: "wnut17train.conll", "val": "emerging.dev.conll", "test": "emerging.test.annotated"},
        )

    def read(self, files: ReleasedFiles, annotations: Mapping[str, str]) -> Contents:
        """A line is a word, a tab and its tag."""
        return Contents(
            {
                split: [
                    Item(
                        key=f"{split}-{one.number}",
                        about={"words": one.words, "tags": one.tags, "group": f"{split}-{one.number}"},
                    )
                    for one in sentences(files, name, columns=2, tags=_TAGS)
                ]
                for split, name in annotations.items()
            }
        )
