"""Tiny releases for the tests of sources: written as the real ones are, and read back from the shards."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from mmlab.data.shards import ShardSet


def picture(number: int, *, kind: str = "JPEG", size: tuple[int, int] = (6, 4)) -> bytes:
    """A picture of one colour, another for every number."""
    with io.BytesIO() as file:
        Image.new("RGB", size, (number % 256, number // 256, 90)).save(file, kind)
        return file.getvalue()


def write_release(folder: Path, files: Mapping[str, Any]) -> Path:
    """Write files by name: bytes, text, or what becomes JSON."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            content = content.encode()
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return folder


def read_shards(folder: Path, split: str) -> dict[str, dict[str, bytes]]:
    """Members by key."""
    shards = ShardSet.find(f"{split}-*.tar", folder=folder)
    samples = (shards.read(shard, i) for shard, count in enumerate(shards.counts) for i in range(count))
    return {sample.key: dict(sample.members) for sample in samples}


def about(members: Mapping[str, bytes]) -> dict[str, Any]:
    """The `json` of a sample."""
    found: dict[str, Any] = json.loads(members["json"])
    return found


def note(folder: Path) -> dict[str, Any]:
    """What a prepared folder says of itself."""
    found: dict[str, Any] = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    return found
