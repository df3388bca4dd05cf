"""The checkpoint that a command line names by `--ckpt_path`: whole, or another one, or an error."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from mmlab.runs.checkpoint import DAMAGED, whole_checkpoint
from mmlab.runs.directory import attempt_id

OPTION = "--ckpt_path"


def with_whole_checkpoint(arguments: Sequence[str]) -> Sequence[str]:
    """The arguments, with the newest good checkpoint where training is to go on from a damaged one.

    The first rank alone changes anything; strategies load what it names.

    Args:
        arguments: Of a trainer verb, which comes first.

    Raises:
        ValueError: What is named is no checkpoint, or is damaged and nothing can take its place.
    """
    first = getattr(rank_zero_only, "rank", 0) == 0
    if not first and attempt_id() is None:  # the first rank has started this one, with its own words
        return arguments
    words = [part for word in arguments for part in word.split("=", 1)]
    for option, value in pairwise(words):
        moved = Path(value + DAMAGED).exists()
        if option == OPTION and (Path(value).exists() or moved):
            whole = str(whole_checkpoint(Path(value), go_on=arguments[0] == "fit", aside=first))
            instead = {value: whole, f"{OPTION}={value}": f"{OPTION}={whole}"}
            return arguments if whole == value else [instead.get(word, word) for word in arguments]
    return arguments
