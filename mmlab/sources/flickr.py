"""Flickr8k and Flickr30k: photographs of people and animals with five captions each."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from mmlab.sources.files import ReleasedFiles
from mmlab.sources.items import Item
from mmlab.sources.karpathy import karpathy_items
from mmlab.sources.released import Contents, Released

_KARPATHY = "karpathy"
_CAPTIONS = "captions"
_SPLITS = ("train", "val", "test")


class Flickr(Released):
    """What Flickr8k and Flickr30k have in common."""

    licence = "captions CC BY-SA 3.0 or for research; photographs under the terms of their Flickr pages"
    karpathy: ClassVar[str]
    """Name of the file with Karpathy's splits."""
    tokens: ClassVar[str]
    """Name of the file of captions."""
    lists: ClassVar[tuple[str, str, str]]
    """Names of the files that list the photographs of train, val and test."""

    def __init__(
        self, *, max_side: int | None = 512, from_file: Path | None = None, out: Path | None = None
    ) -> None:
        """Settings.

        Args:
            max_side: Larger photographs are reduced to this length in pixels; None: none are.
            from_file: Folder of the release.
            out: Folder to write; None: one in the cache directory.
        """
        super().__init__(settings={}, max_side=max_side, from_file=from_file, out=out)

    def annotations(self, files: ReleasedFiles) -> dict[str, str]:
        """Karpathy's file, or the captions and the lists of photographs."""
        # The second is what Karpathy's archive of the set holds.
        if (name := files.find(self.karpathy) or files.find(f"{self.name}/dataset.json")) is not None:
            return {_KARPATHY: name}
        return self.require(files, {_CAPTIONS: self.tokens, **dict(zip(_SPLITS, self.lists, strict=True))})

    def read(self, files: ReleasedFiles, annotations: Mapping[str, str]) -> Contents:
        """A line of captions is `NAME.jpg#NUMBER`, a tab and the caption; one of a list is a name."""
        if _KARPATHY in annotations:
            return Contents(files.parse(annotations[_KARPATHY], karpathy_items))
        captions: dict[str, list[str]] = defaultdict(list)
        for name, caption in files.parse_lines(annotations[_CAPTIONS], _caption):
            captions[name].append(caption)
        listed = {split: files.parse_lines(annotations[split], _stem) for split in _SPLITS}
        left_out: Counter[str] = Counter()
        left_out["photographs in no list"] = len(captions.keys() - set().union(*listed.values()))
        items = {}
        for split, names in listed.items():
            left_out["photographs without captions"] += len(set(names) - captions.keys())
            items[split] = [
                Item(
                    key=name,
                    about={"captions": captions[name], "image_id": name},
                    media=(f"{name}.jpg",),
                )
                for name in names
                if name in captions
            ]
        return Contents(items, +left_out)


class Flickr8k(Flickr):
    """Photographs with five English captions each (Flickr8k, Hodosh et al. 2013).

    A sample is a photograph (`jpg`): `json` has `captions` and `image_id` (the file name without its ending).
    The splits are the released ones: 6,000 for train, 1,000 each for val and test; where the release has
    `dataset_flickr8k.json`, they are read from there.
    """

    name = "flickr8k"
    release = (
        "The release is Flickr8k_Dataset.zip and Flickr8k_text.zip of the University of Illinois, on request,"
        " unpacked into one folder; or its photographs with Karpathy's dataset_flickr8k.json."
    )
    karpathy = "dataset_flickr8k.json"
    tokens = "Flickr8k.token.txt"
    lists = ("Flickr_8k.trainImages.txt", "Flickr_8k.devImages.txt", "Flickr_8k.testImages.txt")


class Flickr30k(Flickr):
    """Photographs with five English captions each (Flickr30k, Young et al. 2014).

    A sample is a photograph (`jpg`): `json` has `captions` and `image_id` (the file name without its ending).
    The splits are Karpathy's `dataset_flickr30k.json` where the release has it (29,000, 1,014 and 1,000
    photographs), else the lists train.txt, val.txt and test.txt of Flickr30k Entities.
    """

    name = "flickr30k"
    release = (
        "The release is flickr30k-images.tar and the captions results_20130124.token of the University of "
        "Illinois, on request, unpacked into one folder, with Karpathy's dataset_flickr30k.json or the lists "
        "train.txt, val.txt and test.txt of Flickr30k Entities."
    )
    karpathy = "dataset_flickr30k.json"
    tokens = "results_20130124.token"
    lists = ("train.txt", "val.txt", "test.txt")


def _caption(line: str) -> tuple[str, str]:
    name, caption = line.split("\t")
    return _stem(name.rpartition("#")[0]), caption.strip()


def _stem(name: str) -> str:
    """A name without `.jpg`; one line of Flickr8k ends with `.jpg.1`, which names no photograph."""
    return name.strip().removesuffix(".jpg")
