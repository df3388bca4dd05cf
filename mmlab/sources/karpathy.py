"""Karpathy's splits of captioned photographs: `dataset_coco.json`, `dataset_flickr30k.json`, ..."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmlab.sources.items import Item
from mmlab.sources.split import TRAIN

_SPLITS = {"train": TRAIN, "restval": TRAIN, "val": "val", "test": "test"}
"""COCO's `restval` is what the others left of the official val; those who report on these splits train on
it."""


def karpathy_items(content: Any) -> dict[str, Sequence[Item]]:
    """The samples of each split.

    Args:
        content: Of the JSON file: `images`, each with `filename`, `split`, `sentences`, and in COCO `cocoid`.
    """
    items: dict[str, list[Item]] = {TRAIN: [], "val": [], "test": []}
    for image in content["images"]:
        identifier = image.get("cocoid", image["filename"].rpartition(".")[0])
        captions = [sentence["raw"].strip() for sentence in image["sentences"]]
        items[_SPLITS[image["split"]]].append(
            Item(
                key=str(identifier),
                about={"captions": captions, "image_id": identifier},
                media=(image["filename"],),
            )
        )
    return dict(items)
