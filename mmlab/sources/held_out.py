"""The validation split of releases that have none: a part of train, chosen by a hash."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from mmlab.sources.split import TRAIN, split

_Row = TypeVar("_Row")


def hold_out(
    rows: Sequence[_Row], number: int, *, label: Callable[[_Row], str], of: str
) -> dict[str, list[_Row]]:
    """Divide rows into `train` and `val`; those of one label stay together.

    Args:
        rows: All, in the order that they keep.
        number: Of labels in val. Adding rows moves few labels.
        label: The picture, or whatever else no two splits may share.
        of: What labels are, in the plural, for the message.

    Raises:
        ValueError: `number` is below 0, or nothing would be left to train on.
    """
    if not rows:
        return {TRAIN: [], "val": []}
    labels = {found: found for found in map(label, rows)}
    if not 0 <= number < len(labels):
        raise ValueError(f"val is {number}: it takes from 0 to {len(labels) - 1} of the {len(labels)} {of}.")
    homes = split(labels, marks=dict.fromkeys(labels, ()), held_out={"val": number}, seed=0)
    return {part: [row for row in rows if homes[label(row)] == part] for part in (TRAIN, "val")}


def at_most_a_tenth(
    rows: Sequence[_Row], number: int, *, label: Callable[[_Row], str], of: str
) -> dict[str, list[_Row]]:
    """As :func:`hold_out`, but of a small part of a release no more than a tenth of the labels."""
    return hold_out(rows, min(number, len(set(map(label, rows))) // 10), label=label, of=of)
