"""COCO: photographs with five captions each, by the official files or in Karpathy's splits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmlab.sources.files import ReleasedFiles
from mmlab.sources.held_out import at_most_a_tenth
from mmlab.sources.items import Item
from mmlab.sources.karpathy import karpathy_items
from mmlab.sources.released import Contents, Released
from mmlab.sources.split import TRAIN

_KARPATHY = "dataset_coco.json"
_ZIPPED = "coco/dataset.json"
"""The same, as it lies in Karpathy's archive of this set."""


class Coco(Released):
    """Photographs with five English captions each (COCO Captions, Chen et al. 2015).

    A sample is a photograph (`jpg`): `json` has `captions`, `image_id` (as in the release and in result
    files). Where the release has `dataset_coco.json` (or `coco/dataset.json`), the splits are Karpathy's,
    restval in train; else train is the official one, 2017 or 2014, without the photographs held out for val,
    and test is the official val, as the official test has no captions.
    """

    name = "coco"
    release = (
        "The release is on cocodataset.org: train2017.zip, val2017.zip and annotations_trainval2017.zip, "
        "unpacked into one folder (or those of 2014); for Karpathy's splits with dataset_coco.json in it."
    )
    licence = "annotations CC BY 4.0; photographs under the Creative Commons licences of their Flickr pages"

    def __init__(
        self,
        *,
        val: int = 1000,
        max_side: int | None = 512,
        from_file: Path | None = None,
        out: Path | None = None,
    ) -> None:
        """Settings.

        Args:
            val: Number of training photographs that are held out, at most a tenth of them; Karpathy's splits
                bring their own.
            max_side: Larger photographs are reduced to this length in pixels; None: none are.
            from_file: Folder of the release.
            out: Folder to write; None: one in the cache directory.
        """
        self.val = val
        super().__init__(settings={"val": val}, max_side=max_side, from_file=from_file, out=out)

    def annotations(self, files: ReleasedFiles) -> dict[str, str]:
        """Karpathy's file, or the captions of train and val."""
        if (name := files.find(_KARPATHY) or files.find(_ZIPPED)) is not None:
            return {_KARPATHY: name}
        years = ("2017", "2014")
        year = next((year for year in years if files.find(f"captions_train{year}.json")), years[0])
        return self.require(files, {TRAIN: f"captions_train{year}.json", "test": f"captions_val{year}.json"})

    def read(self, files: ReleasedFiles, annotations: Mapping[str, str]) -> Contents:
        """Captions belong to photographs by their identifiers."""
        if _KARPATHY in annotations:
            splits = files.parse(annotations[_KARPATHY], karpathy_items)
        else:
            splits = {role: files.parse(name, _items) for role, name in annotations.items()}
            held_out = at_most_a_tenth(splits[TRAIN], self.val, label=lambda item: item.key, of="photographs")
            splits = {**held_out, "test": splits["test"]}
        return Contents(
            {
                name: [item._replace(media=(coco_picture(files, item.media[0]),)) for item in items]
                for name, items in splits.items()
            }
        )


def coco_picture(files: ReleasedFiles, name: str) -> str:
    """The name of a photograph, or the one that the release of 2017 has for it, where only that is there.

    Args:
        files: The release.
        name: `COCO_val2014_000000000042.jpg`, in which 2017 leaves out all but the number.
    """
    newer = name.rpartition("_")[2]
    return newer if files.find(name) is None and files.find(newer) is not None else name


def _items(content: Any) -> list[Item]:
    captions: dict[int, list[str]] = defaultdict(list)
    for annotation in content["annotations"]:
        captions[annotation["image_id"]].append(annotation["caption"].strip())
    return [
        Item(
            key=str(image["id"]),
            about={"captions": captions[image["id"]], "image_id": image["id"]},
            media=(image["file_name"],),
        )
        for image in content["images"]
        if image["id"] in captions
    ]
