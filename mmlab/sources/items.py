"""Samples whose pictures and sounds are still in the release, and their way into shards."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Shaped

from mmlab.assets.progress import progress
from mmlab.data.shards import write_shards
from mmlab.sources.files import ReleasedFiles
from mmlab.sources.picture import reduce_picture

MISSING, BROKEN = "file missing", "file broken"
"""Why an item becomes no sample."""
_SOUNDS = ("ogg", "wav", "flac", "mp3")
_COUNTED = ("captions", "questions", "turns")
"""Lists in samples of which the elements are counted."""
_THREADS = min(8, os.cpu_count() or 1)
_AHEAD = 4 * _THREADS
"""Samples under way at the same time."""
_RECENT = 64
"""Pictures kept for the next samples that show them."""

_In = TypeVar("_In")
_Out = TypeVar("_Out")


class Item(NamedTuple):
    """A sample before its files are read."""

    key: str
    """Unique in its split; characters that keys may not hold are replaced."""
    about: Mapping[str, Any]
    """Its member `json`."""
    media: tuple[str, ...] = ()
    """Its pictures and sounds: ends of names in the release. One is written as `jpg`, `png`, `ogg`, ...; of
    several each is written with its place, `0.jpg`, `1.jpg`, ..."""
    arrays: Mapping[str, Sequence[float] | Shaped[np.ndarray, " dim"]] = {}
    """Features, a member each in numpy's format, by extension (`text.npy`): float32, one step."""
    needs_media: bool = True
    """Whether it is left out where a picture or sound cannot be read; else it is a sample without."""


class Written(NamedTuple):
    """What became of the items of a split."""

    counts: Mapping[str, int]
    """Samples, media, captions, questions, turns; empty if nothing was written."""
    left_out: Mapping[str, int]
    """Items by the reason why they became no sample."""
    broken: int
    """Pictures and sounds that could not be read, of samples that are without them."""


class _Medium(NamedTuple):
    extension: str
    data: bytes


def write_items(
    items: Sequence[Item], files: ReleasedFiles, folder: Path, *, split: str, max_side: int | None
) -> Written:
    """Write the shards of a split, unless none of its items can be read.

    Samples are in no order, so that the first thousand are like all, but those of one picture are side by
    side.

    Args:
        items: Of the split.
        files: Where their pictures and sounds are.
        folder: Where to.
        split: Name of the split.
        max_side: Larger pictures are reduced to this length in pixels; None: none are.
    """
    counts: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    broken = 0
    ordered = sorted(items, key=lambda item: (_hash("/".join(item.media) or item.key), _hash(item.key)))
    load = lru_cache(_RECENT)(partial(_load, files, max_side))

    def samples(show: Callable[[int], None]) -> Iterator[dict[str, Any]]:
        nonlocal broken
        known, keys = set(), set()
        for done, (item, media, lost) in enumerate(_ahead(partial(_read, load), ordered), start=1):
            show(done)
            broken += lost
            if isinstance(media, str) or item.key in known:
                left_out[media if isinstance(media, str) else "identifier repeated"] += 1
                continue
            key = _plain(item.key)
            if key in keys:
                key += f"-{_hash(item.key).hex()[:8]}"
            known.add(item.key)
            keys.add(key)
            counts.update({"samples": 1, "media": len(media)})
            counts.update({what: len(item.about[what]) for what in _COUNTED if what in item.about})
            arrays = {extension: _array(values) for extension, values in item.arrays.items()}
            about = _utf8(json.dumps(item.about, ensure_ascii=False))
            yield {"__key__": key, **media, **arrays, "json": about}

    with progress(f"writing {split}", total=len(items), in_bytes=False) as show:
        written = samples(show)
        first = next(written, None)
        if first is not None:
            write_shards(chain([first], written), folder, split)
    return Written(counts, left_out, broken)


def _load(files: ReleasedFiles, max_side: int | None, end: str) -> _Medium | str:
    """A picture or sound, or why there is none."""
    name = files.find(end)
    if name is None:
        return MISSING
    try:
        data = files.read(name)
        extension = name.rpartition(".")[2].lower()
        if extension in _SOUNDS:
            return _Medium(extension, data)
        picture = reduce_picture(data, max_side)
    except ValueError:
        return BROKEN
    return _Medium(picture.extension, picture.data)


def _read(load: Callable[[str], _Medium | str], item: Item) -> tuple[Item, dict[str, bytes] | str, int]:
    """The item with its media by extension, or why one cannot be had; how many it does without are broken."""
    members, broken = {}, 0
    for place, end in enumerate(item.media):
        medium = load(end)
        if isinstance(medium, str):
            if item.needs_media:
                return item, medium, 0
            broken += medium == BROKEN
            continue
        members[medium.extension if len(item.media) == 1 else f"{place}.{medium.extension}"] = medium.data
    return item, members, broken


def _ahead(function: Callable[[_In], _Out], items: Iterable[_In]) -> Iterator[_Out]:
    """What a function returns for each item, in order, with several under way."""
    with ThreadPoolExecutor(_THREADS) as pool:
        waiting: deque[Future[_Out]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _array(values: Sequence[float] | Shaped[np.ndarray, " dim"]) -> bytes:
    """One step in numpy's format."""
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(values, dtype=np.float32)[None], allow_pickle=False)
    return buffer.getvalue()


def _plain(key: str) -> str:
    """A key as tars can hold it: without dots and slashes."""
    return re.sub(r"[^\w-]+", "_", key, flags=re.ASCII)


def _hash(text: str) -> bytes:
    return hashlib.sha256(_utf8(text)).digest()


def _utf8(text: str) -> bytes:
    """Half of a surrogate pair, which JSON can escape and UTF-8 cannot hold, becomes a question mark."""
    return text.encode("utf-8", "replace")
