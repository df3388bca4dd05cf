"""Splits of sounds by released folds: those of one recording are never in two of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmlab.sources.held_out import hold_out
from mmlab.sources.items import Item
from mmlab.sources.split import TRAIN


def by_fold(items: Sequence[Item], *, test: int | None, val: int, path: Path) -> dict[str, list[Item]]:
    """Test on one fold, and hold recordings of each class out of the others for validation.

    Args:
        items: With their `fold`, `label` and `recording`.
        test: The fold to test on; None: the last that is there.
        val: Number of recordings of each class that are held out of the other folds, chosen by a hash.
        path: The release, for messages.

    Raises:
        ValueError: There is no such fold, or nothing is left to train on.
    """
    if not items:
        return {}
    folds = sorted({int(item.about["fold"]) for item in items})
    chosen = folds[-1] if test is None else test
    if chosen not in folds or len(folds) == 1:
        raise ValueError(
            f"cannot test on fold {chosen}: {path} has {', '.join(map(str, folds))}, and training needs "
            "another one."
        )
    parts: dict[str, list[Item]] = {
        TRAIN: [], "val": [], "test": [item for item in items if item.about["fold"] == chosen]
    }  # fmt: skip
    for label in dict.fromkeys(item.about["label"] for item in items):
        others = [item for item in items if item.about["label"] == label and item.about["fold"] != chosen]
        held = hold_out(
            others, val, label=lambda item: str(item.about["recording"]), of=f"recordings of {label}"
        )
        for part, found in held.items():
            parts[part] += found
    return parts
