"""A folder of weights that appears when it is complete, and not before."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WEIGHTS_FILE = "model.safetensors"


@contextmanager
def new_folder(path: Path, *, force: bool) -> Iterator[Path]:
    """A folder to write into, which takes its name when the block ends, and is removed where that fails.

    Args:
        path: Its name.
        force: Replace a folder of weights that is there.

    Raises:
        ValueError: Something is there, and may not or must not be replaced.
    """
    if path.exists() and not force:
        raise ValueError(f"{path} exists: --force replaces it")
    if path.exists() and not (path / WEIGHTS_FILE).is_file():
        raise ValueError(f"{path} exists and holds no {WEIGHTS_FILE}, so it is not replaced: name another")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished, former = (path.with_name(f".{path.name}.{os.getpid()}.{end}") for end in ("part", "old"))
    unfinished.mkdir()
    try:
        yield unfinished
        if path.exists():
            os.replace(path, former)
        os.replace(unfinished, path)
    finally:
        for left in (unfinished, former):
            shutil.rmtree(left, ignore_errors=True)
