"""Downloads: one remote file into a folder, resumed where it was cut, checked, whole or not there."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.request
import urllib.response
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import BinaryIO

from mmlab.assets.progress import progress

_Response = http.client.HTTPResponse | urllib.response.addinfourl
_CHUNK = 1 << 18
_SILENCE = 60.0
"""Seconds without a byte after which a connection counts as cut."""
_WAITS = (1.0, 2.0, 4.0, 8.0)
"""Seconds between the tries that bring nothing new."""


class FetchError(OSError):
    """Something could not be fetched: one line what and where, one line what to do."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}\n{remedy}")


class WrongFileError(FetchError):
    """What was fetched is not what was asked for: never to be taken for a missing network."""


class _CutError(Exception):
    """A connection ended early; another try may get further."""


@dataclass(frozen=True, slots=True)
class Remote:
    """A file somewhere else."""

    url: str
    name: str
    """Its name in the folder it is downloaded to."""
    sha256: str
    size: int | None
    """Bytes, or None where the index does not tell."""
    remedy: str
    """What a person does when the download fails: the command that fetches the file by hand."""


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(remote: Remote, folder: Path, *, waits: Sequence[float] = _WAITS) -> Path:
    """Download a file, unless the folder holds it already.

    What a cut connection or a killed process leaves, `NAME.DIGEST.part`, is completed by the next call.
    Only a file of the right size and checksum gets its final name. Callers that may run at the same time
    hold a lock.

    Args:
        remote: What to download; `file:` addresses and the environment's proxies work.
        folder: Where to; it is made if missing.
        waits: Seconds before each further try; the count starts again whenever a try got further.

    Raises:
        FetchError: The server or the network failed, the file is not the one expected, or the disk is full.
    """
    final = folder / remote.name
    if final.is_file() and sha256_of(final) == remote.sha256:
        return final
    # The digest in the name keeps a part of one version from being completed with bytes of another.
    part = folder / f"{remote.name}.{remote.sha256[:8]}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _complete(remote, part, waits)
        found = sha256_of(part)
        if found != remote.sha256:
            part.unlink()
            raise WrongFileError(
                f"{remote.url} is not the file expected: its SHA-256 is {found}, not {remote.sha256}.",
                remote.remedy,
            )
        os.replace(part, final)
    except FetchError:
        raise
    except OSError as error:
        raise FetchError(
            f"cannot write {part}: {error.strerror or error}.",
            f"{remote.name} needs {_megabytes(remote.size)} there: make room, "
            "or name another cache directory in the environment variable MMLAB_CACHE.",
        ) from error
    return final


def _complete(remote: Remote, part: Path, waits: Sequence[float]) -> None:
    """Bring the part to its full size, over as many connections as that takes."""
    remaining = list(waits)
    best = part.stat().st_size if part.exists() else 0
    title = f"fetching {remote.name} ({_megabytes(remote.size)})"
    with progress(title, total=remote.size, in_bytes=True) as show:
        while True:
            try:
                _receive(remote, part, show)
                return
            except _CutError as cut:
                size = part.stat().st_size if part.exists() else 0
                if size > best:
                    best, remaining = size, list(waits)
                elif not remaining:
                    raise FetchError(f"cannot fetch {remote.url}: {cut}.", remote.remedy) from cut
            time.sleep(remaining.pop(0) if remaining else 0.0)


def _receive(remote: Remote, part: Path, show: Callable[[int], None]) -> None:
    """Append to the part what one connection brings.

    Raises:
        _CutError: The connection ended before the file did.
        FetchError: Another try would end in the same way.
        OSError: The disk refuses.
    """
    start = part.stat().st_size if part.exists() else 0
    if start == remote.size:
        return
    response = _connect(remote, part, start)
    if response is None:
        return
    with response:
        resumed = response.status == 206 and _first_byte(response.headers) == start
        if response.status == 206 and not resumed:
            # Appended at the wrong place, the bytes of this answer would spoil what is there.
            part.unlink(missing_ok=True)
            raise _CutError("the server sent another range than the one asked for")
        start = start if resumed else 0
        announced = _total(response.headers, start)
        if announced is not None and remote.size is not None and announced != remote.size:
            raise WrongFileError(
                f"{remote.url} is not the file expected: the server announces {announced} bytes, "
                f"not {remote.size}; a proxy or a login page may be in the way.",
                remote.remedy,
            )
        with part.open("ab" if resumed else "wb") as file:
            received = start + _copy(response, file, lambda done: show(start + done))
    total = announced if remote.size is None else remote.size
    if total is not None and received < total:
        raise _CutError(f"the connection ended after {received} of {total} bytes")


def _connect(remote: Remote, part: Path, start: int) -> _Response | None:
    """Ask for the file from byte `start` on; None where the part turns out to be whole."""
    request = urllib.request.Request(remote.url, headers={"Accept-Encoding": "identity"})
    if start > 0:
        request.add_header("Range", f"bytes={start}-")
    try:
        response: _Response = urllib.request.urlopen(request, timeout=_SILENCE)
        return response
    except urllib.error.HTTPError as error:
        error.close()
        answer = f"the server answered {error.code} {error.reason}"
        if error.code == 416:
            if remote.size is None and _total(error.headers, 0) == start:
                return None
            part.unlink()
        elif error.code not in (408, 429) and error.code < 500:
            raise FetchError(f"cannot fetch {remote.url}: {answer}.", remote.remedy) from error
        raise _CutError(answer) from error
    except urllib.error.URLError as error:
        raise _CutError(str(error.reason)) from error
    except (http.client.HTTPException, OSError) as error:
        raise _CutError(str(error) or type(error).__name__) from error


def _copy(response: _Response, file: BinaryIO, show: Callable[[int], None]) -> int:
    """Copy the rest of an answer to a file; returns the number of bytes."""
    done = 0
    while True:
        try:
            chunk = response.read(_CHUNK)
        except (http.client.HTTPException, OSError) as error:
            raise _CutError(str(error) or type(error).__name__) from error
        if not chunk:
            return done
        file.write(chunk)
        done += len(chunk)
        show(done)


def _first_byte(headers: Message) -> int | None:
    match = re.match(r"bytes (\d+)-", headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _total(headers: Message, start: int) -> int | None:
    """Size of the whole file by the headers of an answer that begins at `start`, if they tell."""
    if match := re.match(r"bytes (?:\d+-\d+|\*)/(\d+)", headers.get("Content-Range", "")):
        return int(match[1])
    length = headers.get("Content-Length", "")
    return start + int(length) if length.isdigit() else None


def _megabytes(size: int | None) -> str:
    return "size unknown" if size is None else f"{size / 1e6:.0f} MB"
