"""The folder that a source prepares: named after its settings, whole or not there, and written once."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from filelock import FileLock

from mmlab.assets.cache import cache_dir
from mmlab.assets.fetch import FetchError

_NOTE = "dataset.json"
"""What a prepared folder holds: written last, so that a folder which has it is complete."""


class Prepared:
    """The place of a prepared data set."""

    def __init__(self, source: str, settings: Mapping[str, Any], *, out: Path | None) -> None:
        """Settings.

        Args:
            source: Name of the source.
            settings: All that changes what is written, as JSON can hold it.
            out: The folder itself; None: one in the cache, named after source, version and settings.
        """
        self._source = source
        self._settings: dict[str, Any] = json.loads(json.dumps(settings))
        self._digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
        self._out = out

    def find(self, version: str | None) -> Path | None:
        """The folder, if it is complete; with version None, that of whatever release was prepared last.

        Raises:
            ValueError: The folder asked for holds something else.
        """
        if self._out is not None:
            return self._check(self._out, version)
        pattern = f"{self._source}-{'*' if version is None else _plain(version)}-{self._digest}/{_NOTE}"
        notes = sorted(self._parent.glob(pattern), key=lambda note: note.stat().st_mtime)
        return notes[-1].parent if notes else None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold off other processes that prepare the same source in the same place.

        Raises:
            FetchError: The disk is full, or the folder may not be written.
        """
        try:
            self._parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self._parent / f".{self._source}.lock"):
                yield
        except FetchError:
            raise
        except OSError as error:
            raise FetchError(
                f"cannot write {self._source} to {self._parent}: {error.strerror or error}.",
                "Make room there, or name another folder (--out DIR, or the variable MMLAB_CACHE).",
            ) from error

    def build(self, version: str, write: Callable[[Path], Mapping[str, Any]]) -> Path:
        """Write the folder, under the lock.

        Args:
            version: Of the released data.
            write: Fills an empty folder; returns what else `dataset.json` is to say.
        """
        folder = self._parent / f"{self._source}-{_plain(version)}-{self._digest}"
        folder = folder if self._out is None else self._out
        for left in self._parent.glob(f".{folder.name}.mmlab-*"):
            shutil.rmtree(left)  # of a process that was killed
        temporary = Path(mkdtemp(prefix=f".{folder.name}.mmlab-", dir=self._parent))
        try:
            facts = write(temporary)
            note = {"source": self._source, "version": version, "settings": self._settings, **facts}
            text = json.dumps(note, indent=2, ensure_ascii=False)
            (temporary / _NOTE).write_text(text, encoding="utf-8")
            temporary.chmod(0o755)  # mkdtemp's are the owner's only, and data may be shared
            os.replace(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return folder

    @property
    def _parent(self) -> Path:
        return cache_dir() / "data" if self._out is None else self._out.absolute().parent

    def _check(self, folder: Path, version: str | None) -> Path | None:
        if not folder.is_dir() or not any(folder.iterdir()):
            return None
        try:
            note = json.loads((folder / _NOTE).read_text(encoding="utf-8"))
            same = (note["source"], note["settings"]) == (self._source, self._settings)
            same = same and version in (None, note["version"])
        except (OSError, ValueError, KeyError, TypeError):
            same = False
        if not same:
            raise ValueError(
                f"{folder} is not empty and holds no {self._source} of these settings: name another folder."
            )
        return folder


def _plain(version: str) -> str:
    """A version as part of a file name."""
    return re.sub(r"[^\w.+]", "_", version)
