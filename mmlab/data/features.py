"""A folder of features: the tokens that frozen encoders gave once, in shards that mirror the raw ones.

It holds `<split>-000000.tar`, ... (number n mirrors raw shard n: same keys, same order; `mmlab.data.tokens`
says what a sample is) and, once all are complete, `features.json`, which says what they were made of.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mmlab.batch import Modality
from mmlab.data.mirrored import MirroredSet
from mmlab.data.reader import Reader
from mmlab.data.samples import SampleSet
from mmlab.data.shards import ShardSet
from mmlab.data.tokens import FeatureReader, Precision

MANIFEST = "features.json"
"""Written last: a folder that has it is complete."""
VERSION = 1


class Tower(NamedTuple):
    """What the features of one modality depend on."""

    encoder: str
    """Fingerprint of the encoder."""
    reader: dict[str, Any]
    """Class and settings of the reader; see :func:`describe_reader`."""
    dim: int
    """Size of a token."""


class Mirror(NamedTuple):
    """The features of one split."""

    raw: str
    """Digest of the raw shards."""
    shards: dict[str, str]
    """File name and digest of each feature shard, in order."""


@dataclass(frozen=True)
class Manifest:
    """What `features.json` says."""

    precision: Precision
    variants: int
    """Augmented variants of each training sample; 0: one, as in evaluation."""
    seed: int
    """Of the augmentation."""
    towers: Mapping[Modality, Tower]
    splits: Mapping[str, Mirror]

    def dump(self) -> str:
        """As JSON."""
        towers = {modality.value: tower._asdict() for modality, tower in self.towers.items()}
        splits = {split: mirror._asdict() for split, mirror in self.splits.items()}
        return json.dumps(asdict(self) | {"version": VERSION, "towers": towers, "splits": splits}, indent=1)

    @classmethod
    def load(cls, text: str) -> Manifest:
        """From JSON.

        Raises:
            ValueError: It is none, or of another version.
        """
        try:
            values = json.loads(text)
            if values.pop("version") != VERSION:
                raise ValueError("of another version of mmlab")
            towers = {Modality(name): Tower(**tower) for name, tower in values.pop("towers").items()}
            splits = {split: Mirror(**mirror) for split, mirror in values.pop("splits").items()}
            return cls(towers=towers, splits=splits, **values)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not what mmlab writes ({error})") from error


class Features:
    """A complete folder of features."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Take what :meth:`open` found."""
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def open(cls, folder: Path) -> Features:
        """Open a folder.

        Raises:
            ValueError: It is missing, unfinished or unreadable.
        """
        try:
            return cls(folder, Manifest.load((folder / MANIFEST).read_text(encoding="utf-8")))
        except OSError as error:
            raise ValueError(
                f"no complete features in {folder}: {_remedy(folder)}, which goes on where it was stopped"
            ) from error
        except ValueError as error:
            raise ValueError(f"{folder / MANIFEST}: {error}: {_remedy(folder)}") from error

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Those whose tokens are here."""
        return tuple(self.manifest.towers)

    def join(self, split: str, raw: SampleSet) -> SampleSet | None:
        """The samples of a split with their features.

        A split of evaluation that has none of its own (`predict`) takes those of another of the same shards.

        Returns:
            None where there are none: encoders then run as without features.

        Raises:
            ValueError: The raw shards changed since, or the features did.
        """
        mirror = self._mirror(split, raw.digest)
        if mirror is None:
            return None
        if mirror.raw != raw.digest:
            raise self._refusal([f"shards of {split} changed"])
        made = ShardSet([self.folder / name for name in mirror.shards])
        if [info.digest for info in made.infos] != list(mirror.shards.values()):
            raise self._refusal([f"features of {split} are damaged"])
        return MirroredSet(raw, made)

    def _mirror(self, split: str, digest: str) -> Mirror | None:
        splits = self.manifest.splits
        if split in splits or split == "train":
            return splits.get(split)
        evaluated = (mirror for name, mirror in splits.items() if name != "train")
        return next((mirror for mirror in evaluated if mirror.raw == digest), None)

    def readers(self, readers: Sequence[Reader]) -> tuple[Reader, ...]:
        """What reads each modality: its features, where they are here, else its own reader.

        Raises:
            ValueError: A reader's settings changed since.
        """
        differing = []
        for reader in readers:
            tower = self.manifest.towers.get(reader.modality)
            if tower is not None:
                differing += _differences(reader.modality, tower.reader, describe_reader(reader))
        if differing:
            raise self._refusal(differing)
        return tuple(self._reader(reader) for reader in readers)

    def _reader(self, reader: Reader) -> Reader:
        tower = self.manifest.towers.get(reader.modality)
        if tower is None:
            return reader
        return FeatureReader(reader, dim=tower.dim, precision=self.manifest.precision)

    def check_encoders(self, fingerprints: Mapping[Modality, str | None]) -> None:
        """Check that the encoders of a model are those that gave the features.

        Args:
            fingerprints: Of each encoder of the model; None where it is trained.

        Raises:
            ValueError: One changed since, or is trained.
        """
        differing = [
            f"encoder of {modality} {'is trained' if now is None else 'changed'}"
            for modality, now in fingerprints.items()
            if modality in self.manifest.towers and now != self.manifest.towers[modality].encoder
        ]
        if differing:
            raise self._refusal(differing)

    def _refusal(self, differing: Sequence[str]) -> ValueError:
        return ValueError(
            f"features in {self.folder} do not fit ({'; '.join(differing)}): {_remedy(self.folder)}, or "
            "leave data.loading.features out"
        )


def _remedy(folder: Path) -> str:
    return f"make them with `mmlab data features --config FILE --out {folder}`"


def describe_reader(reader: Reader) -> dict[str, Any]:
    """Class and settings of a reader, as JSON holds them, but for its `settings_of_use`."""
    settings: dict[str, Any] = json.loads(reader.identity)
    return {name: value for name, value in settings.items() if name not in reader.settings_of_use}


def _differences(modality: Modality, then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    names = sorted({*then, *now})
    return [
        f"reader of {modality}: {name} {then.get(name)} -> {now.get(name)}"
        for name in names
        if then.get(name) != now.get(name)
    ]
