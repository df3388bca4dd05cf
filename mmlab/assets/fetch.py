"""Downloads: one remote file into a folder, resumed where it was cut, checked, whole or not there."""

from __future__ import annotations

import errno
import hashlib
import http.client
import io
import os
import re
import time
import urllib.error
import urllib.request
import urllib.response
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from email.message import Message
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

from mmlab.assets.progress import progress

CHUNK = 1 << 18
"""Bytes read at a time."""
SILENCE = 60.0
"""Seconds without a byte after which a connection counts as cut."""
_SLOW = 1 << 10
"""Bytes a second below which a connection counts as cut too."""
FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a disk that is full."""
_WAITS = (1.0, 2.0, 4.0, 8.0)
"""Seconds between the tries that bring nothing new."""


class FetchError(OSError):
    """Something could not be fetched: one line what and where, one line what to do."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}\n{remedy}")


class WrongFileError(FetchError):
    """What was fetched is not what was asked for: never to be taken for a missing network."""


class RefusedError(Exception):
    """There is no such file, or no leave to read it: another try would end in the same way."""


class CutError(Exception):
    """A connection ended early; another try may get further."""

    def __init__(self, problem: str, *, anew: bool = False) -> None:
        """Say what happened.

        Args:
            problem: In words.
            anew: What was received so far is worth nothing.
        """
        super().__init__(problem)
        self.anew = anew


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


class Answer(NamedTuple):
    """The bytes of a file from some place on."""

    read: Callable[[int], bytes]
    """Returns at most so many bytes, none at the end; raises :class:`CutError`."""
    close: Callable[[], None]
    start: int = 0
    """Where in the file these bytes begin."""
    total: int | None = None
    """Size of the whole file, if it is known."""
    version: str | None = None
    """Differs, where it is known, once the file has another content."""


class Origin(NamedTuple):
    """Where the bytes of one file come from."""

    url: str
    size: int | None
    """Bytes that the file must have, if it is known."""
    remedy: str
    ask: Callable[[int], Answer]
    """Asks for the bytes from some place on; raises :class:`CutError` and :class:`RefusedError`."""


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
        title = f"fetching {remote.name} ({_megabytes(remote.size)})"
        origin = Origin(remote.url, remote.size, remote.remedy, partial(ask, remote.url))
        with progress(title, total=remote.size, in_bytes=True) as show:
            complete(part, origin, waits=waits, grow=lambda size, total: show(size))
        found = sha256_of(part)
        if found != remote.sha256:
            part.unlink()
            raise WrongFileError(
                f"{remote.url} is not the file expected: its SHA-256 is {found}, not {remote.sha256}.",
                remote.remedy,
            )
        os.replace(part, final)
    except RefusedError as error:
        raise FetchError(f"cannot fetch {remote.url}: {error}.", remote.remedy) from error
    except FetchError:
        raise
    except OSError as error:
        raise FetchError(
            f"cannot write {part}: {error.strerror or error}.",
            f"{remote.name} needs {_megabytes(remote.size)} there: make room, "
            "or name another cache directory in the environment variable MMLAB_CACHE.",
        ) from error
    return final


def complete(
    part: Path,
    origin: Origin,
    *,
    waits: Sequence[float] = _WAITS,
    grow: Callable[[int, int | None], None] = lambda size, total: None,
    make_room: Callable[[], bool] = lambda: False,
) -> None:
    """Bring a part of a file to its full size, over as many connections as that takes.

    Args:
        part: What is there already, or will be.
        origin: Where the rest comes from.
        waits: Seconds before each further try; the count starts again whenever a try got further.
        grow: Called with the size that the part is about to have, before it has it, and with the size that
            it will have in the end, if that is known; may raise.
        make_room: Called when the disk is full; says whether there is room now.

    Raises:
        RefusedError: There is no such file, or no leave to read it.
        FetchError: The tries are used up, or the file has another size.
        OSError: The disk refuses.
    """
    remaining = list(waits)
    best = _size(part)
    version: list[str | None] = [None]
    while True:
        began = time.monotonic()
        try:
            _receive(part, origin, version, grow)
            return
        except CutError as cut:
            if cut.anew:
                part.unlink(missing_ok=True)
            gain = _size(part) - best
            if gain > _SLOW * (time.monotonic() - began):  # less would go on for days
                best, remaining = best + gain, list(waits)
            elif not remaining:
                raise FetchError(f"cannot fetch {origin.url}: {cut}.", origin.remedy) from cut
        except OSError as error:
            if error.errno not in FULL or not make_room():
                raise
            continue
        time.sleep(remaining.pop(0) if remaining else 0.0)


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _receive(
    part: Path, origin: Origin, version: list[str | None], grow: Callable[[int, int | None], None]
) -> None:
    """Append to the part what one connection brings.

    Raises:
        CutError: The connection ended before the file did.
        RefusedError, FetchError: Another try would end in the same way.
        OSError: The disk refuses.
    """
    start = _size(part)
    if start == origin.size:
        return
    answer = origin.ask(start)
    try:
        # Appended to another version or at the wrong place, these bytes would spoil what is there.
        if answer.start not in (0, start):
            raise CutError("the server sent another range than the one asked for", anew=True)
        if answer.start == 0:
            version[0] = None
        if None not in (version[0], answer.version) and version[0] != answer.version:
            raise CutError("the file changed on the server while it was fetched", anew=True)
        if None not in (answer.total, origin.size) and answer.total != origin.size:
            raise WrongFileError(
                f"{origin.url} is not the file expected: the server announces {answer.total} bytes, "
                f"not {origin.size}; a proxy or a login page may be in the way.",
                origin.remedy,
            )
        version[0] = version[0] or answer.version
        grow(answer.start, answer.total)
        with part.open("ab" if answer.start > 0 else "wb") as file:
            received = answer.start + _copy(answer, file, grow)
    finally:
        answer.close()
    total = answer.total if origin.size is None else origin.size
    if total is not None and received < total:
        raise CutError(f"the connection ended after {received} of {total} bytes")


def _copy(answer: Answer, file: BinaryIO, grow: Callable[[int, int | None], None]) -> int:
    """Copy an answer to a file; returns the number of bytes."""
    done = 0
    while chunk := answer.read(CHUNK):
        grow(answer.start + done + len(chunk), answer.total)
        file.write(chunk)
        done += len(chunk)
    return done


def ask(url: str, start: int, *, silence: float = SILENCE, method: str = "GET") -> Answer:
    """Ask for an `http:`, `https:` or `file:` address from byte `start` on.

    Args:
        url: The address; redirections are followed.
        start: The first byte wanted. A server that knows no ranges answers from 0 on.
        silence: Seconds without a byte after which a connection counts as cut.
        method: `HEAD` asks for the size and version alone.

    Raises:
        CutError: Another try may get further.
        RefusedError: The server has no such file or does not give it.
    """
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity"}, method=method)
    if start > 0:
        request.add_header("Range", f"bytes={start}-")
    try:
        response = urllib.request.urlopen(request, timeout=silence)
    except urllib.error.HTTPError as error:
        error.close()
        answer = f"the server answered {error.code} {error.reason}"
        if error.code == 416:
            if _total(error.headers, 0) == start:  # nothing is missing
                return Answer(io.BytesIO().read, lambda: None, start, start)
            raise CutError(answer, anew=True) from error
        if error.code not in (408, 429) and error.code < 500:
            raise RefusedError(answer) from error
        raise CutError(answer) from error
    except urllib.error.URLError as error:
        raise CutError(str(error.reason)) from error
    except (http.client.HTTPException, OSError) as error:
        raise CutError(str(error) or type(error).__name__) from error
    headers = response.headers
    first = _first_byte(headers) if response.status == 206 else 0
    version = headers.get("ETag") or headers.get("Last-Modified")
    if first is None:
        response.close()
        raise CutError("the server sent another range than the one asked for", anew=True)
    return Answer(_reader(response.read1, silence), response.close, first, _total(headers, first), version)


def _reader(read: Callable[[int], bytes], silence: float) -> Callable[[int], bytes]:
    """Reading from a connection, which may neither break nor trickle."""
    since, brought = time.monotonic(), 0

    def read_on(size: int) -> bytes:
        nonlocal since, brought
        try:
            chunk = read(size)
        except (http.client.HTTPException, OSError) as error:
            raise CutError(str(error) or type(error).__name__) from error
        brought += len(chunk)
        now = time.monotonic()
        if now - since > silence:
            # Writing the last chunk may have taken long; only a server that sent little is slow.
            if chunk and brought < _SLOW * silence:
                raise CutError(f"the server sends less than {_SLOW} bytes a second")
            since, brought = now, 0
        return chunk

    return read_on


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
