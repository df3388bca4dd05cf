"""Debian packages (.deb): the files inside, read in Python on any system."""

from __future__ import annotations

import gzip
import io
import lzma
import shutil
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path, PurePosixPath
from typing import Any

_ARCHIVE = b"!<arch>\n"
_HEADER = 60
"""Bytes before each member of an ar archive: name 16, time 12, owner 6, group 6, mode 8, size 10, mark 2."""
_BROKEN = (tarfile.TarError, lzma.LZMAError, zlib.error, gzip.BadGzipFile, EOFError)


def read_deb(path: Path, *, show: Callable[[int], None] | None = None) -> Iterator[tuple[str, bytes]]:
    """Stream the regular files of a package.

    Args:
        path: The .deb.
        show: Called with the bytes of the .deb that are done.

    Yields:
        Name (relative, with forward slashes) and content of each file, in the order of the package.

    Raises:
        ValueError: The file is no Debian package, is cut short or broken, or names a file outside itself.
    """
    yield from _read_tar(path, "data.tar", show)


def deb_control(path: Path) -> dict[str, str]:
    """What a package states of itself: `Package`, `Version` and more, of values of several lines the first.

    Raises:
        ValueError: As for :func:`read_deb`.
    """
    with closing(_read_tar(path, "control.tar", None)) as files:
        for name, content in files:
            if name == "control":
                lines = content.decode().splitlines()
                fields = (line.partition(": ") for line in lines if not line.startswith(" "))
                return {key: value.strip() for key, _, value in fields}
    raise ValueError(f"{path} is no Debian package: it has no control file.")


def _read_tar(
    path: Path, part: str, show: Callable[[int], None] | None
) -> Generator[tuple[str, bytes], None, None]:
    try:
        with path.open("rb") as file, _open_part(path, file, part) as content:
            with tarfile.open(fileobj=content, mode="r|") as tar:
                for member in tar:
                    if member.isreg() and (data := tar.extractfile(member)) is not None:
                        yield _safe_name(path, member.name), data.read()
                    if show is not None:
                        show(file.tell())
            while content.read(1 << 16):
                pass  # to the end: only there does a compressed stream tell that it was cut
    except _BROKEN as error:
        raise ValueError(f"{path} is cut short or broken ({error}): fetch it again.") from error


class _Member(io.RawIOBase):
    """The next bytes of a file, as a file that ends where they end."""

    def __init__(self, file: io.BufferedReader, size: int) -> None:
        self._file, self._left = file, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with memoryview(buffer) as view:
            size = self._file.readinto(view[: min(len(view), self._left)])
            if size == 0 and len(view) > 0 and self._left > 0:
                raise EOFError(f"{self._left} bytes are missing")
        self._left -= size
        return size


@contextmanager
def _open_part(path: Path, file: io.BufferedReader, part: str) -> Iterator[io.BufferedIOBase]:
    """Open one of the package's two tar archives, decompressed."""
    if file.read(len(_ARCHIVE)) != _ARCHIVE:
        raise ValueError(f"{path} is no Debian package (.deb).")
    while header := file.read(_HEADER):
        if len(header) < _HEADER or header[58:] != b"`\n" or not header[48:58].strip().isdigit():
            raise EOFError("no header where one is due")
        name, size = header[:16].decode("latin-1").strip().rstrip("/"), int(header[48:58])
        if name == part or name.startswith(part + "."):
            with _decompress(path, io.BufferedReader(_Member(file, size), 1 << 20), name) as content:
                yield content
            return
        file.seek(size + size % 2, io.SEEK_CUR)
    raise EOFError(f"it has no {part}")


def _decompress(path: Path, raw: io.BufferedReader, name: str) -> AbstractContextManager[io.BufferedIOBase]:
    part, _, ending = name.rpartition(".")
    if ending == "tar":
        return nullcontext(raw)
    if ending == "xz":
        return lzma.open(raw)
    if ending == "gz":
        return gzip.open(raw)
    if ending == "zst" and sys.version_info >= (3, 14):
        from compression import zstd

        return zstd.open(raw)
    if ending == "zst":
        return _dpkg(path, part)
    raise ValueError(f"{path} is compressed in a way that mmlab does not know ({name}).")


@contextmanager
def _dpkg(path: Path, part: str) -> Iterator[io.BufferedIOBase]:
    """Ubuntu compresses its packages with zstd, which Python knows from 3.14 on, but dpkg everywhere."""
    if shutil.which("dpkg-deb") is None:
        raise ValueError(
            f"{path} is compressed with zstd, which takes Python 3.14 or the program dpkg-deb; "
            "Debian's own package of the same name does without."
        )
    option = "--fsys-tarfile" if part == "data.tar" else "--ctrl-tarfile"
    command = ["dpkg-deb", option, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert isinstance(process.stdout, io.BufferedReader)
        try:
            yield process.stdout
            if process.wait() != 0:
                raise EOFError(f"dpkg-deb ends with {process.returncode}")
        finally:
            process.kill()


def _safe_name(path: Path, name: str) -> str:
    parts = PurePosixPath(name).parts
    if name.startswith("/") or ".." in parts:
        raise ValueError(f"{path} names a file outside itself: {name!r}.")
    return "/".join(part for part in parts if part != ".")
