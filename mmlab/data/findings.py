"""What reading every member of one shard finds: faults, lengths of captions, fingerprints."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from mmlab.data.decode import BrokenMember, decode_image, decode_sound, read_image_header
from mmlab.data.fields import read_field
from mmlab.data.likeness import SKETCH, exact_hash, picture_mark, text_hash, text_sketch, words
from mmlab.data.members import Kind, captions, kind_of
from mmlab.data.samples import RawSample
from mmlab.data.shards import ShardSet

EXAMPLES = 10
"""Keys that are kept of samples with the same fault."""
_PLACE = [("shard", "<u4"), ("sample", "<u4"), ("exact", "<u8")]
MARKS: Mapping[str, np.dtype[Any]] = {
    "keys": np.dtype(_PLACE),
    "images": np.dtype([*_PLACE, ("hash", "<u8"), ("colours", "u1", (48,))]),
    "sounds": np.dtype(_PLACE),
    "texts": np.dtype([*_PLACE, ("sketch", "u1", (SKETCH,))]),
}
"""What is kept in memory of each key, picture, sound and caption: 16, 72, 16 and 80 bytes."""


@dataclass(frozen=True)
class Findings:
    """What was found in one shard."""

    path: Path
    samples: int = 0
    bytes: int = 0
    damage: str | None = None
    """Why the file cannot be read, or where it is cut off."""
    duplicates: int = 0
    """Samples whose key another sample of the shard had before."""
    unsorted: int = 0
    """Samples whose key is below the one before. Nothing needs sorted keys; webdataset's own tools only need
    the members of a sample together."""
    broken: Mapping[str, int] = field(default_factory=dict)
    """How many members cannot be read, by extension and reason: `jpg: cannot decode`."""
    examples: Mapping[str, list[str]] = field(default_factory=dict)
    """Keys of the first samples with each fault: the names of `broken`, `duplicates`, `unsorted`."""
    extensions: Mapping[str, int] = field(default_factory=dict)
    """How many samples have each extension."""
    lacking: Mapping[str, int] = field(default_factory=dict)
    """How many samples lack an extension that others, of any shard checked, have; this may well be meant."""
    characters: Mapping[int, int] = field(default_factory=dict)
    """How many captions have each length in characters."""
    words: Mapping[int, int] = field(default_factory=dict)
    """How many captions have each length in words."""
    marks: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)
    """Rows of :data:`MARKS`, by kind; empty where nothing could be read."""

    @property
    def fine(self) -> bool:
        """Whether nothing is wrong."""
        return self.damage is None and self.duplicates == 0 and not self.broken

    def to_json(self) -> str:
        """All of it, as text."""
        marks = {kind: base64.b64encode(rows.tobytes()).decode() for kind, rows in self.marks.items()}
        return json.dumps({**asdict(self), "path": str(self.path), "marks": marks})

    @classmethod
    def from_json(cls, text: str) -> Findings:
        """What :meth:`to_json` wrote.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: The text is something else.
        """
        values = json.loads(text)
        marks = {
            kind: np.frombuffer(base64.b64decode(values["marks"][kind]), MARKS[kind])
            for kind in values["marks"]
        }
        lengths = {
            name: {int(length): int(count) for length, count in values[name].items()}
            for name in ("characters", "words")
        }
        given = {field.name: values[field.name] for field in fields(cls)}
        return cls(**given | lengths | {"path": Path(values["path"]), "marks": marks})


def examine(path: Path) -> Findings:
    """Read and decode every member of a shard. What is broken is in what it returns; it raises nothing."""
    try:
        shards = ShardSet([path])
        size = path.stat().st_size
    except (ValueError, OSError) as error:
        return Findings(path, damage=str(error))
    return _Examination(path, shards).run(size)


class _Examination:
    """Counts what is found, sample by sample."""

    def __init__(self, path: Path, shards: ShardSet) -> None:
        self.path = path
        self.shards = shards
        self.broken: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}
        self.seen: set[int] = set()
        self.duplicates = self.unsorted = 0
        self.before = ""
        self.characters: Counter[int] = Counter()
        self.words: Counter[int] = Counter()
        self.rows: dict[str, list[tuple[Any, ...]]] = {kind: [] for kind in MARKS}

    def run(self, size: int) -> Findings:
        info = self.shards.infos[0]
        damage = info.damage
        for sample in range(info.samples):
            try:
                self._order_of_keys(sample)
                self._members(sample)
            except (ValueError, OSError, TypeError, OverflowError, LookupError) as error:
                # The index is made by others as well as the tar, and says where to read.
                damage = f"cannot be read by its index, delete that and check again: {error}"
                break
        return Findings(
            self.path,
            samples=info.samples,
            bytes=size,
            damage=damage,
            duplicates=self.duplicates,
            unsorted=self.unsorted,
            broken=dict(sorted(self.broken.items())),
            examples=self.examples,
            extensions=dict(info.extensions),
            characters=dict(sorted(self.characters.items())),
            words=dict(sorted(self.words.items())),
            marks={kind: np.array(self.rows[kind], dtype) for kind, dtype in MARKS.items()},
        )

    def _example(self, fault: str, key: str) -> None:
        kept = self.examples.setdefault(fault, [])
        if len(kept) < EXAMPLES:
            kept.append(key)

    def _order_of_keys(self, sample: int) -> None:
        key = self.shards.key(0, sample)
        mark = text_hash(key)
        if mark in self.seen:
            self.duplicates += 1
            self._example("duplicates", key)
        elif key < self.before:
            self.unsorted += 1
            self._example("unsorted", key)
        self.seen.add(mark)
        self.before = key
        self.rows["keys"].append((0, sample, mark))

    def _members(self, sample: int) -> None:
        try:
            raw = self.shards.read(0, sample)
        except BrokenMember as error:
            self._fault("sample", error, self.shards.key(0, sample))
            return
        readable = dict(raw.members)
        for extension, data in raw.members.items():
            try:
                self._member(extension, data, sample)
            except BrokenMember as error:
                self._fault(extension, error, raw.key)
                del readable[extension]
        self._captions(RawSample(raw.key, readable), sample)

    def _fault(self, where: str, error: BrokenMember, key: str) -> None:
        fault = f"{where}: {error}"
        self.broken[fault] += 1
        self._example(fault, key)

    def _member(self, extension: str, data: bytes, sample: int) -> None:
        kind = kind_of(extension)
        if kind is Kind.IMAGE:
            header = read_image_header(data)
            # All bytes of a JPEG are decoded at any size, but a small one is made in less time.
            pixels, _ = decode_image(data, header, least=min(1.0, 64 / min(header.height, header.width)))
            mark = picture_mark(pixels)
            self.rows["images"].append((0, sample, exact_hash(data), mark.hash, mark.colours))
        elif kind is Kind.SOUND:
            decode_sound(data, sampling_rate=16_000)
            self.rows["sounds"].append((0, sample, exact_hash(data)))
        elif kind is Kind.TEXT:
            read_field({"txt": data}, "txt")
        elif kind is Kind.FIELDS:
            read_field({"json": data}, "json.*")

    def _captions(self, raw: RawSample, sample: int) -> None:
        for text in captions(raw.members):
            parts = words(text)
            self.characters[len(text)] += 1
            self.words[len(parts)] += 1
            whole = text_hash(" ".join(parts))
            self.rows["texts"].append((0, sample, whole, text_sketch(parts)))
