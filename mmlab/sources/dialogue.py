"""An utterance with what was said before it, as one text."""

from __future__ import annotations

from collections.abc import Iterable


def in_context(utterance: str, before: Iterable[str]) -> str:
    """The utterance, and behind it on a line each what was said before, the latest first.

    A reader cuts long texts at their end: what is lost then was said longest ago.

    Args:
        utterance: What a sample is about.
        before: Lines said before it, in the order in which they were said.
    """
    return "\n".join([utterance, *reversed(list(before))])
