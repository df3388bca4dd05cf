"""Twitter-2015 and Twitter-2017: named entities in posts with a picture each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mmlab.sources.conll import bio, sentences
from mmlab.sources.files import ReleasedFiles
from mmlab.sources.items import Item
from mmlab.sources.released import Contents, Released
from mmlab.sources.split import TRAIN

_TAGS = bio("LOC", "MISC", "ORG", "PER", "OTHER")
_HEADING = "IMGID:"


class TwitterEntities(Released):
    """Posts with a picture and their named entities (Twitter-2015, Zhang et al. 2018; -2017, Lu et al. 2018).

    A sample is a post with its picture (`jpg`): `json` has `words`, `tags` (one for each word, by BIO: LOC,
    MISC or OTHER, ORG, PER), `image_id` and `group` (the picture); a post whose picture is missing or broken
    is a sample without one. The splits are the released ones.
    """

    name = "twitter_entities"
    release = (
        "The release is that of UMT (jefferyYu/UMT on GitHub) for one year: a folder with train.txt, "
        "valid.txt and test.txt, whose posts begin with a line IMGID:NUMBER, and the pictures NUMBER.jpg. Of "
        "a folder that holds both years name the one of the year."
    )
    licence = "research use; posts and pictures of their authors"

    def __init__(
        self,
        *,
        year: int = 2017,
        max_side: int | None = 384,
        from_file: Path | None = None,
        out: Path | None = None,
    ) -> None:
        """Settings.

        Args:
            year: Which it is, 2015 or 2017: what was prepared is found by it.
            max_side: Larger pictures are reduced to this length in pixels; None: none are.
            from_file: Folder of the release of one year.
            out: Folder to write; None: one in the cache directory.

        Raises:
            ValueError: There is no such year.
        """
        if year not in (2015, 2017):
            raise ValueError(f"year is {year}: it is 2015 or 2017.")
        self.year = year
        super().__init__(settings={"year": year}, max_side=max_side, from_file=from_file, out=out)

    def annotations(self, files: ReleasedFiles) -> dict[str, str]:
        """A file for each split; of a folder with both years it cannot be told which is meant."""
        if sum(name.endswith("train.txt") for name in files.names) > 1:
            raise ValueError(f"{files.path} holds several train.txt. {self.release}")
        return self.require(files, {TRAIN: "train.txt", "val": ("valid.txt", "dev.txt"), "test": "test.txt"})

    def read(self, files: ReleasedFiles, annotations: Mapping[str, str]) -> Contents:
        """A line is a word, a tab and its tag."""
        return Contents({split: _items(files, split, name) for split, name in annotations.items()})


def _items(files: ReleasedFiles, split: str, name: str) -> list[Item]:
    items = []
    for one in sentences(files, name, columns=2, tags=_TAGS, heading=lambda line: line.startswith(_HEADING)):
        image = one.heading.removeprefix(_HEADING).strip()
        about = {"words": one.words, "tags": one.tags, "image_id": image, "group": image}
        picture = f"{image}.jpg"
        items.append(Item(f"{split}-{one.number}", about, media=(picture,), needs_media=False))
    return items
