"""Splits of recordings by who speaks: no speaker is heard in two of them."""

from __future__ import annotations

from collections.abc import Sequence

from mmlab.sources.held_out import hold_out
from mmlab.sources.items import Item


def by_speaker(items: Sequence[Item], *, test: str | None, val: int) -> dict[str, list[Item]]:
    """Leave one speaker out for the test, and others for validation.

    Args:
        items: With their `speaker`.
        test: The speaker to test on; None: the last one.
        val: Number of speakers held out for validation, chosen by a hash.

    Raises:
        ValueError: There is no such speaker, or nobody is left to train on.
    """
    speakers = sorted({str(item.about["speaker"]) for item in items})
    chosen = speakers[-1] if test is None and speakers else test
    if chosen not in speakers or len(speakers) < 2:
        raise ValueError(
            f"cannot test on speaker {chosen}: there are {', '.join(speakers)}, and training needs another "
            "one."
        )
    rest = [item for item in items if item.about["speaker"] != chosen]
    parts = hold_out(rest, val, label=lambda item: str(item.about["speaker"]), of="other speakers")
    return {**parts, "test": [item for item in items if item.about["speaker"] == chosen]}
