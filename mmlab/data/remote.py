"""Addresses of remote shards: what is one, what is allowed, and how its bytes are asked for."""

from __future__ import annotations

import importlib.util
import os
import re
import select
import signal
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

from mmlab.assets.fetch import Answer, CutError, Origin, RefusedError, ask

_PIPE = "pipe:"
_ADDRESS = re.compile(r"(?:([a-zA-Z][a-zA-Z0-9+.-]*)://|pipe:)", re.ASCII)
# fsspec promises no single error; these are what its file systems raise when a connection fails.
_FAILURES = (OSError, ValueError, EOFError, RuntimeError)


@dataclass(frozen=True)
class RemoteShards:
    """How shards with an address (`https://`, `s3://`, `gs://`, ..., `pipe:`) are read."""

    cache: str | None = None
    """Folder that fetched shards are kept in, best on a disk of the node; all its processes and jobs may
    share it. None: `shards` in the cache directory."""
    cache_bytes: int = 50_000_000_000
    """Disk space for fetched shards; those used longest ago make room for others."""
    allow_pipe: bool = False
    """Whether `pipe:COMMAND` may run a shell command, whose standard output is the shard."""

    def __post_init__(self) -> None:
        if self.cache_bytes < 1:
            raise ValueError(
                f"remote.cache_bytes {self.cache_bytes}: must be at least 1, the bytes of a shard"
            )


def is_address(name: str) -> bool:
    """Whether a text is an address rather than a path."""
    return _ADDRESS.match(name) is not None


def check_address(address: str, *, allow_pipe: bool) -> None:
    """Refuse what cannot be fetched or is not allowed, without asking the network.

    Raises:
        ValueError: A command where none is allowed, a pattern, or a scheme that needs a package.
    """
    if address.startswith(_PIPE):
        if not allow_pipe:
            raise ValueError(
                f"{address} runs a shell command, which is not allowed: name the shards by an address, or "
                "set remote.allow_pipe to true if you trust the command"
            )
        return
    if "*" in address:
        raise ValueError(
            f"{address} has a *, but addresses are not listed: name the shards with a range, such as "
            "train-{000000..000099}.tar"
        )
    scheme = _scheme(address)
    if scheme in ("http", "https"):
        return
    # Deferred: most shards lie on this machine.
    from fsspec.registry import known_implementations

    if scheme not in known_implementations:
        raise ValueError(
            f"{address}: no file system is called {scheme}; use https, s3, gs, or another of fsspec's"
        )
    package = known_implementations[scheme]["class"].partition(".")[0]
    if importlib.util.find_spec(package) is None:
        raise ValueError(f"{address}: reading {scheme}:// needs a package: pip install {package}")


def beside(address: str) -> str | None:
    """The address of a shard's index, if a shard of this kind can have one."""
    if address.startswith(_PIPE):
        return None
    path, mark, query = address.partition("?")
    return f"{path}.idx{mark}{query}"


def origin(address: str, *, size: int | None, remedy: str, silence: float) -> Origin:
    """Where the bytes of an address come from.

    Args:
        address: One that :func:`check_address` lets pass.
        size: Bytes that it must have; None: not known yet.
        remedy: What to do when it cannot be fetched, for messages.
        silence: Seconds without a byte after which a connection counts as cut.
    """
    if address.startswith(_PIPE):
        asks: Callable[[int], Answer] = partial(_ask_command, address.removeprefix(_PIPE), silence)
    elif _scheme(address) in ("http", "https"):
        asks = partial(ask, address, silence=silence)
    else:
        asks = partial(_ask_fsspec, address)
    return Origin(address, size, remedy, asks)


def size_of(address: str, *, silence: float) -> int | None:
    """Size of the shard at an address in bytes, or None where nobody tells."""
    try:
        if _scheme(address) in ("http", "https"):
            answer = ask(address, 0, silence=silence, method="HEAD")
        else:
            answer = _ask_fsspec(address, 0)
    except (CutError, RefusedError):  # some servers answer GET alone
        return None
    answer.close()
    return answer.total


def _scheme(address: str) -> str:
    match = _ADDRESS.match(address)
    assert match is not None, address
    return match[1].lower()


def _ask_fsspec(address: str, start: int) -> Answer:
    from fsspec.core import url_to_fs

    try:
        system, path = url_to_fs(address)
        size, version = system.info(path)["size"], system.ukey(path)
        file = system.open(path, "rb")
        file.seek(start)
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise RefusedError(f"{type(error).__name__} {error}") from error
    except _FAILURES as error:
        raise CutError(f"{type(error).__name__} {error}") from error

    def read(count: int) -> bytes:
        try:
            chunk: bytes = file.read(count)
        except _FAILURES as error:
            raise CutError(f"{type(error).__name__} {error}") from error
        return chunk

    return Answer(read, file.close, start, size, version)


def _ask_command(command: str, silence: float, start: int) -> Answer:
    """Run a command anew; its output always begins at byte 0."""
    errors = tempfile.TemporaryFile()  # noqa: SIM115  (a pipe that nobody reads would stop the command)
    process = subprocess.Popen(
        command,
        shell=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=errors,
        start_new_session=True,
    )
    assert process.stdout is not None
    output = process.stdout

    def read(count: int) -> bytes:
        if not select.select([output], [], [], silence)[0]:
            raise CutError(f"the command is silent for {silence:g} s")
        chunk = os.read(output.fileno(), count)
        if not chunk and (status := _end(process, silence)) != 0:
            problem = f"the command ended with exit status {status}{_last_words(errors)}"
            # What the shell says of a command that is not there, or is no program.
            raise RefusedError(problem) if status in (126, 127) else CutError(problem, anew=True)
        return chunk

    def close() -> None:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        output.close()
        errors.close()

    return Answer(read, close)


def _end(process: subprocess.Popen[bytes], silence: float) -> int:
    """Exit status of a command that has closed its output."""
    try:
        return process.wait(silence)
    except subprocess.TimeoutExpired:
        raise CutError(f"the command does not end {silence:g} s after its output", anew=True) from None


def _last_words(errors: BinaryIO) -> str:
    """The end of what a command wrote to its standard error, on one line."""
    errors.seek(max(0, errors.seek(0, os.SEEK_END) - 300))
    words = " ".join(errors.read().decode("utf-8", "replace").split())
    return f" ({words})" if words else ""
