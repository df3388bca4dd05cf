"""Writes a folder of features shard by shard, and goes on where it was stopped."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

from filelock import FileLock, Timeout

from mmlab.data.features import MANIFEST, Features, Manifest, Mirror
from mmlab.data.index import open_index
from mmlab.data.samples import SampleSet
from mmlab.data.shards import write_shards

_PREVIOUS = ".features.previous.json"
"""The manifest of a folder that is being changed; there is no other then."""
_FINISHED = ".features.finished"
"""A line of JSON for each shard finished since: its name, what it is made of, its digest."""
_MAKING = ".making-"
_SHARD = re.compile(r"\w+-\d{6}\.tar(\.idx)?")


class FeatureWriter:
    """A folder of features that is being made; use :meth:`open`."""

    def __init__(self, folder: Path, wanted: Manifest) -> None:
        """Find what is there.

        Args:
            folder: Under the lock of this process.
            wanted: What to make the features of; its `splits` are filled in.

        Raises:
            ValueError: The folder holds something else.
        """
        self.folder = folder
        self.wanted = wanted
        self._splits: dict[str, Mirror] = {}
        self._previous = _load(folder / MANIFEST) or _load(folder / _PREVIOUS)
        known = (MANIFEST, _PREVIOUS, _FINISHED)
        if not any((folder / name).exists() for name in known) and any(
            not path.name.startswith(".") for path in folder.iterdir()
        ):
            raise ValueError(f"{folder} is not empty and holds no features: name another folder (--out)")
        for left in folder.glob(f"{_MAKING}*"):
            shutil.rmtree(left)  # of a process that was killed
        self._finished = dict(self._kept())

    @classmethod
    @contextmanager
    def open(cls, folder: Path, wanted: Manifest) -> Iterator[FeatureWriter]:
        """Open a folder, new or not, for this process alone.

        Raises:
            ValueError: The folder holds something else, or another process writes it.
        """
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(folder / ".lock", timeout=0):
                yield cls(folder, wanted)
        except Timeout:
            raise ValueError(f"another process writes features to {folder}: wait for it") from None

    def pending(self, split: str, raw: SampleSet) -> list[int]:
        """The shards of a split that are still to be made; counts the split to what is wanted."""
        names = [f"{split}-{number:06d}.tar" for number in range(len(raw.names))]
        self._splits[split] = Mirror(raw.digest, dict.fromkeys(names, ""))
        missing = []
        for number, name in enumerate(names):
            made_of, digest = self._finished.get(name, ("", ""))
            path = self.folder / name
            kept = made_of == self._made_of(split, number) and path.exists()
            if not kept or open_index(path).info.digest != digest:
                missing.append(number)
        return missing

    def write(self, split: str, number: int, samples: Iterable[Mapping[str, object]], *, count: int) -> None:
        """Make one shard.

        Args:
            split: Which :meth:`pending` was asked for.
            number: Of the shard.
            samples: With `__key__` and members as bytes.
            count: Of the samples.
        """
        if (self.folder / MANIFEST).exists():
            os.replace(self.folder / MANIFEST, self.folder / _PREVIOUS)
        lines = self.folder / _FINISHED
        lines.touch()
        name = f"{split}-{number:06d}.tar"
        temporary = Path(mkdtemp(dir=self.folder, prefix=_MAKING))
        try:
            if count > 0:
                path = write_shards(samples, temporary, split, max_samples=count, max_bytes=sys.maxsize)[0]
            else:
                path = temporary / name
                tarfile.open(path, "w").close()
            info = open_index(path).info
            if info.samples != count:
                raise ValueError(f"{name} holds {info.samples} samples instead of {count}")
            for suffix in (".idx", ""):
                os.replace(f"{path}{suffix}", self.folder / f"{name}{suffix}")
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        entry = self._made_of(split, number), info.digest
        self._finished[name] = entry
        with lines.open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps([name, *entry]))  # a line that was cut off spoils no other

    def finish(self) -> Features:
        """Say that the folder is complete, and drop what belongs to no split of it."""
        splits = dict(self._previous.splits) if self._goes_on() and self._previous is not None else {}
        for split, mirror in self._splits.items():
            splits[split] = Mirror(mirror.raw, {name: self._finished[name][1] for name in mirror.shards})
        w = self.wanted
        manifest = Manifest(w.precision, w.variants, w.seed, w.towers, splits)
        temporary = self.folder / f".{MANIFEST}"
        temporary.write_text(manifest.dump() + "\n", encoding="utf-8")
        os.replace(temporary, self.folder / MANIFEST)
        for name in (_PREVIOUS, _FINISHED):
            (self.folder / name).unlink(missing_ok=True)
        wanted = {name for mirror in splits.values() for name in mirror.shards}
        for path in self.folder.iterdir():
            if _SHARD.fullmatch(path.name) and path.name.removesuffix(".idx") not in wanted:
                path.unlink()
        return Features(self.folder, manifest)

    def _goes_on(self) -> bool:
        """Whether splits that were made before, and are not asked for now, go with the new ones."""
        then, now = self._previous, self.wanted
        if then is None:
            return False
        return (then.precision, then.variants, then.seed, then.towers) == (
            now.precision, now.variants, now.seed, now.towers,
        )  # fmt: skip

    def _made_of(self, split: str, number: int) -> str:
        return _made_of(self.wanted, split, self._splits[split].raw, number)

    def _kept(self) -> Iterator[tuple[str, tuple[str, str]]]:
        """Name of each shard that was finished, what it is made of, and its digest."""
        if self._previous is not None:
            for split, mirror in self._previous.splits.items():
                for number, (name, digest) in enumerate(mirror.shards.items()):
                    yield name, (_made_of(self._previous, split, mirror.raw, number), digest)
        lines = self.folder / _FINISHED
        for line in lines.read_text(encoding="utf-8").splitlines() if lines.exists() else []:
            try:
                name, made_of, digest = json.loads(line)
            except ValueError:  # the process was killed inside this line, or it is empty
                continue
            yield name, (made_of, digest)


def _made_of(manifest: Manifest, split: str, raw: str, number: int) -> str:
    """SHA-256 of all that decides the content of a shard."""
    towers = {modality.value: tower for modality, tower in manifest.towers.items()}
    drawn = [manifest.variants, manifest.seed] if split == "train" and manifest.variants > 0 else []
    settings = json.dumps([manifest.precision, towers, raw, number, drawn], sort_keys=True)
    return hashlib.sha256(settings.encode()).hexdigest()


def _load(path: Path) -> Manifest | None:
    """A manifest; None where there is none that can be read."""
    try:
        return Manifest.load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
