"""The files of a release: a folder, a zip or a tar, read by name and never unpacked."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import IO, Any, BinaryIO, TypeVar

from mmlab.assets.fetch import CHUNK

MEDIA = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".ogg", ".wav", ".flac", ".mp3")
"""Endings of pictures and sounds."""
_PACKED = (".zip", ".tar", ".tar.gz", ".tgz", ".7z", ".rar")
_MEDIUM_LIMIT = 256 * 2**20
_TEXT_LIMIT = 4 * 2**30
"""Larger files, in bytes, are refused: an archive may announce any size."""
_PICKLES = (".pkl", ".pickle", ".p")
"""Endings of files that Python's pickle wrote."""
_NO_PICKLE = (
    "reading a pickle file can run any code, so mmlab does not; where you trust it, convert it as "
    "docs/fusion.md shows"
)
_SHOWN = 8
"""Names that a message shows."""
_BROKEN = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, gzip.BadGzipFile, EOFError,
    RuntimeError,
)  # fmt: skip
"""What a broken archive, one that is encrypted or one of an unknown compression, raises."""

_T = TypeVar("_T")


class ReleasedFiles(ABC):
    """The files of a release, by names relative to it with forward slashes; hidden ones do not count."""

    def __init__(self, path: Path, names: Iterable[str]) -> None:
        """Note the names.

        Args:
            path: The release, for messages.
            names: All of them.
        """
        self.path = path
        self.names = sorted(name for name in names if not _is_hidden(name))
        self._by_last: dict[str, list[str]] = defaultdict(list)
        for name in sorted(self.names, key=lambda name: (name.count("/"), name)):
            self._by_last[name.rpartition("/")[2]].append(name)

    @abstractmethod
    def size(self, name: str) -> int:
        """Bytes of a file."""

    @abstractmethod
    def _read(self, name: str) -> bytes:
        """Content of a file; several threads may ask at the same time."""

    def find(self, end: str) -> str | None:
        """The file whose name ends so, in whole parts (`train/1.png`), nearest to the top, or None."""
        return next(self._ending(end), None)

    def find_all(self, end: str) -> list[str]:
        """All files whose names end so and that are as near to the top as the nearest."""
        found = list(self._ending(end))
        return [name for name in found if name.count("/") == found[0].count("/")]

    def _ending(self, end: str) -> Iterator[str]:
        for name in self._by_last.get(end.rpartition("/")[2], ()):
            if name == end or name.endswith(f"/{end}"):
                yield name

    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            ValueError: It is too large, the disk refuses, or the archive is broken.
        """
        limit = _MEDIUM_LIMIT if name.lower().endswith(MEDIA) else _TEXT_LIMIT
        try:
            if (size := self.size(name)) > limit:
                raise ValueError(f"{name} in {self.path} has {size} bytes, more than the {limit} allowed.")
            return self._read(name)
        except _BROKEN as error:
            raise ValueError(f"{self.path} is cut short or broken ({error}): fetch it again.") from error
        except OSError as error:
            raise ValueError(f"cannot read {name} in {self.path}: {error.strerror or error}.") from error

    def text(self, name: str) -> str:
        """The content of a text file in UTF-8, which may be compressed by gzip, without a byte order mark.

        Raises:
            ValueError: It is no UTF-8, or broken.
        """
        content = self.read(name)
        if name.endswith(".gz"):
            try:
                content = gzip.decompress(content)
            except _BROKEN as error:
                raise ValueError(f"{name} in {self.path} is broken ({error}): fetch it again.") from error
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{name} in {self.path} is no UTF-8 ({error}): fetch it again.") from error

    def parse(self, name: str, reading: Callable[[Any], _T]) -> _T:
        """What a function makes of a JSON file.

        Raises:
            ValueError: The file is no JSON, or not what the function expects.
        """
        text = self.text(name)
        with self.naming(name):
            content = json.loads(text)
            del text  # a gigabyte, of the largest
            return reading(content)

    def lines(self, name: str) -> list[str]:
        """The lines of a text file, blank ones too, but for those at its end.

        Raises:
            ValueError: It is no UTF-8.
        """
        return [line.rstrip("\r") for line in self.text(name).rstrip("\r\n").split("\n")]

    def parse_lines(self, name: str, reading: Callable[[str], _T]) -> list[_T]:
        """What a function makes of each line of a text file that is not blank.

        Raises:
            ValueError: A line is not what the function expects.
        """
        found = []
        for number, line in enumerate(self.lines(name), start=1):
            if line.strip():
                with self.naming(name, number):
                    found.append(reading(line))
        return found

    def table(
        self, name: str, columns: Iterable[str], text: str | None = None
    ) -> list[tuple[int, dict[str, str]]]:
        """The rows of a CSV file with a heading, by column, with the numbers of their lines.

        What `csv.DictReader` says of cells too few and too many stays: a value, or a column, that is None.

        Args:
            name: Of the file.
            columns: Those that it must have.
            text: Its content, where it is not in UTF-8.

        Raises:
            ValueError: It is no table, or lacks columns.
        """
        content = io.StringIO(self.text(name) if text is None else text, newline="")
        reader = csv.DictReader(content, strict=True)
        with self.naming(name):
            try:
                rows = [(reader.line_num, row) for row in reader]
            except csv.Error as error:
                raise ValueError(f"line {reader.reader.line_num}: {error}") from error
            if missing := [column for column in columns if column not in (reader.fieldnames or ())]:
                raise ValueError(f"no column {', '.join(missing)}")
        return rows

    @contextmanager
    def naming(self, name: str, line: int | None = None) -> Iterator[None]:
        """Turn what indexing and decoding an unexpected value raise into one line that names the file.

        Raises:
            ValueError: Something else than expected was met.
        """
        try:
            yield
        except (KeyError, IndexError, TypeError, AttributeError, ValueError, RecursionError) as error:
            place = name if line is None else f"{name}, line {line},"
            what = f"no field {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{place} in {self.path} is not as released: {what}.") from error

    def digest(self, names: Iterable[str]) -> str:
        """Twelve hexadecimal digits that differ where some files, or names and sizes of the media do.

        Media are not read: hours of sound would be. Of some releases their names are the labels.
        """
        summed = hashlib.sha256()
        for name in sorted(names):
            summed.update(hashlib.sha256(self.read(name)).digest())
        for name in sorted(name for name in self.names if name.lower().endswith(MEDIA)):
            summed.update(f"{name} {self._size(name)}\n".encode("utf-8", "surrogateescape"))
        return summed.hexdigest()[:12]

    def _size(self, name: str) -> int:
        """Bytes of a file, 0 where there is none behind a link: that is counted when it is read."""
        try:
            return self.size(name)
        except OSError:
            return 0

    def describe(self) -> str:
        """What the release holds, in words, for someone who expected something else."""
        if not self.names:
            return "it is empty"
        shown = sorted({name.split("/")[0] + "/" * ("/" in name) for name in self.names})
        more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
        packed = any(name.lower().endswith(_PACKED) for name in self.names)
        pickled = any(name.lower().endswith(_PICKLES) for name in self.names)
        remedies = "; unpack the archives in it" * packed + f"; {_NO_PICKLE}" * pickled
        return f"it holds {', '.join(shown[:_SHOWN])}{more}{remedies}"


class _Folder(ReleasedFiles):
    """A folder; links to other folders are followed."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, _walk(path))

    def size(self, name: str) -> int:
        return (self.path / name).stat().st_size

    def _read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()


class _Zip(ReleasedFiles):
    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        super().__init__(path, (info.filename for info in archive.infolist() if not info.is_dir()))
        self._archive = archive

    def size(self, name: str) -> int:
        return self._archive.getinfo(name).file_size

    def _read(self, name: str) -> bytes:
        return self._archive.read(name)


class _Tar(ReleasedFiles):
    def __init__(self, path: Path, archive: tarfile.TarFile) -> None:
        self._members = {
            str(PurePosixPath(member.name)): member for member in archive.getmembers() if member.isreg()
        }
        super().__init__(path, self._members)
        self._archive = archive
        self._lock = Lock()

    def size(self, name: str) -> int:
        return self._members[name].size

    def _read(self, name: str) -> bytes:
        with self._lock:  # all members share one file position
            content = self._archive.extractfile(self._members[name])
            assert content is not None, "only regular files are listed"
            return content.read()


@contextmanager
def open_release(path: Path) -> Iterator[ReleasedFiles]:
    """Open a folder, a zip (a wheel is one) or a tar, which may be compressed by gzip.

    Raises:
        ValueError: It is missing, a pickle file, something else, or broken.
    """
    if path.is_dir():
        yield _Folder(path)
        return
    if not path.is_file():
        raise ValueError(f"there is no file or folder {path}: correct from_file (--from).")
    if path.suffix.lower() in _PICKLES:
        raise ValueError(f"{path}: {_NO_PICKLE}.")
    with ExitStack() as stack:
        file = stack.enter_context(path.open("rb"))
        with _broken_is_said(path):
            files = _open_archive(path, file, stack)
        yield files


def _open_archive(path: Path, file: BinaryIO, stack: ExitStack) -> ReleasedFiles:
    if zipfile.is_zipfile(file):
        return _Zip(path, stack.enter_context(zipfile.ZipFile(file)))
    file.seek(0)
    packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    plain = stack.enter_context(_unpacked(file)) if packed else file
    return _Tar(path, stack.enter_context(tarfile.open(fileobj=plain, mode="r:")))


@contextmanager
def _unpacked(file: BinaryIO) -> Iterator[IO[bytes]]:
    """What a gzip file holds, to be read in any order."""
    with tempfile.TemporaryFile() as plain:
        with gzip.open(file) as content:
            shutil.copyfileobj(content, plain, CHUNK)
        plain.seek(0)
        yield plain


@contextmanager
def _broken_is_said(path: Path) -> Iterator[None]:
    try:
        yield
    except _BROKEN as error:
        raise ValueError(f"{path} is no folder, zip or tar, or it is broken ({error}).") from error


def _walk(folder: Path) -> Iterator[str]:
    """Names of all files in a folder, relative to it."""
    seen: set[tuple[int, int]] = set()
    for path, folders, files in os.walk(folder, followlinks=True):
        here = os.stat(path)
        if (here.st_dev, here.st_ino) in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        inside = Path(path).relative_to(folder).as_posix()
        yield from (name if inside == "." else f"{inside}/{name}" for name in files)


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))
