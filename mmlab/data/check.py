"""What is wrong with shards: damage, duplicate keys, members that cannot be decoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmlab.data.decode import BrokenMember, decode_image, decode_sound, read_image_header
from mmlab.data.fields import read_field
from mmlab.data.shards import ShardSet

_IMAGES = frozenset({"jpg", "jpeg", "png", "webp"})
_SOUNDS = frozenset({"wav", "flac", "ogg", "mp3"})


@dataclass(frozen=True)
class ShardReport:
    """What was found in one shard."""

    path: Path
    samples: int = 0
    bytes: int = 0
    damage: str | None = None
    """Why the file cannot be read, or where it is cut off."""
    duplicates: int = 0
    """Samples whose key another sample of the shard had before."""
    lacking: Mapping[str, int] = field(default_factory=dict)
    """How many samples lack an extension that others, of any shard checked, have; this may well be meant."""
    broken: Mapping[str, int] = field(default_factory=dict)
    """How many members cannot be read, by extension and reason: `jpg: cannot decode`."""

    @property
    def fine(self) -> bool:
        """Whether nothing is wrong."""
        return self.damage is None and self.duplicates == 0 and not self.broken


def check_shards(paths: Sequence[Path]) -> Iterator[ShardReport]:
    """Read and decode every member of shards; yields a report a shard, in order, as they are done."""
    opened: dict[Path, ShardSet] = {}
    refused: dict[Path, str] = {}
    for path in paths:
        try:
            opened[path] = ShardSet([path])
        except ValueError as error:
            refused[path] = str(error)
    extensions = sorted({name for shards in opened.values() for name in shards.extensions})
    for path in paths:
        if path in refused:
            yield ShardReport(path, damage=refused[path])
            continue
        shards = opened.pop(path)
        info = shards.infos[0]
        lacking = {name: info.samples - info.extensions.get(name, 0) for name in extensions}
        yield ShardReport(
            path,
            samples=info.samples,
            bytes=info.bytes,
            damage=info.damage,
            duplicates=info.duplicates,
            lacking={name: count for name, count in lacking.items() if count > 0},
            broken=_broken(shards),
        )


def _broken(shards: ShardSet) -> dict[str, int]:
    """Members of one shard that cannot be read, counted by extension and reason."""
    found: Counter[str] = Counter()
    for sample in range(shards.infos[0].samples):
        try:
            members = shards.read(0, sample).members
        except BrokenMember as error:
            found[f"sample: {error}"] += 1
            continue
        for extension, data in members.items():
            try:
                _decode(extension, data)
            except BrokenMember as error:
                found[f"{extension}: {error}"] += 1
    return dict(sorted(found.items()))


def _decode(extension: str, data: bytes) -> None:
    kind = extension.rpartition(".")[2]
    if kind in _IMAGES:
        decode_image(data, read_image_header(data))
    elif kind in _SOUNDS:
        decode_sound(data, sampling_rate=16_000)
    elif kind == "txt":
        read_field({kind: data}, kind)
    elif kind == "json":
        read_field({kind: data}, f"{kind}.*")
