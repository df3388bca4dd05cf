"""Checks shards, several at a time, and keeps what it found: a second check answers from that."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from mmlab.assets.cache import cache_dir
from mmlab.data.findings import Findings, examine
from mmlab.data.index import open_index

VERSION = 1
"""Of the check: what another one has kept is not used."""


def check_shards(
    paths: Sequence[Path],
    *,
    jobs: int = 0,
    fresh: bool = False,
    done: Callable[[Path], None] = lambda path: None,
) -> list[Findings]:
    """Read and decode every member of shards.

    The findings of each shard are kept in the cache directory as soon as it is read, and used again while the
    shard stays as it is.

    Args:
        paths: The tars.
        jobs: Processes that read, where one that dies of what it reads is a finding, too; 0: this one reads.
        fresh: Whether to read again what was checked before.
        done: Called with each path when it is checked.

    Returns:
        Of each shard, in the order of `paths`.
    """
    found: dict[Path, Findings] = {}
    for path in paths:
        known = None if fresh else _recall(path)
        if known is not None:
            found[path] = known
            done(path)

    def keep(path: Path, findings: Findings) -> None:
        found[path] = findings
        done(path)

    left = [path for path in paths if path not in found]
    if jobs == 0:
        for path in left:
            keep(path, _check(path))
    else:
        _check_elsewhere(left, jobs, keep)
    extensions = sorted({name for findings in found.values() for name in findings.extensions})
    return [_with_lacking(found[path], extensions) for path in paths]


def _check_elsewhere(paths: Sequence[Path], jobs: int, keep: Callable[[Path, Findings], None]) -> None:
    """Check shards in processes of their own.

    Not by an executor: it does not say which shard a process died of, and has a thread and locks in between,
    of which Ctrl-C at the wrong moment can leave one locked.
    """
    left = list(reversed(paths))
    readers: list[_Reader] = []
    try:
        while left and len(readers) < jobs:
            readers.append(_Reader(left.pop()))
        while readers:
            for pipe in multiprocessing.connection.wait([reader.pipe for reader in readers]):
                reader = next(reader for reader in readers if reader.pipe is pipe)
                path, findings = reader.path, reader.answer()
                if findings is not None and left:
                    reader.ask(left.pop())
                else:
                    reader.end()
                    readers.remove(reader)
                    readers += [_Reader(left.pop())] if left else []
                keep(path, findings or Findings(path, damage="the process that read it died: out of memory?"))
    finally:
        # A shard can take minutes: who interrupts does not wait for it.
        for reader in readers:
            reader.end()


class _Reader:
    """A process that checks one shard after the other.

    Args:
        path: The first.
    """

    path: Path
    """What it reads."""

    def __init__(self, path: Path) -> None:
        # Spawned, not forked: a fork may inherit a lock that a thread of this process holds.
        context = multiprocessing.get_context("spawn")
        self.pipe, its_end = context.Pipe()
        self._process = context.Process(target=_check_what_is_asked, args=(its_end,), daemon=True)
        self._process.start()
        its_end.close()  # or this process would hold it open, and not see that the other one died
        self.ask(path)

    def ask(self, path: Path) -> None:
        self.path = path
        with contextlib.suppress(BrokenPipeError):  # it died: the answer will say so
            self.pipe.send(path)

    def answer(self) -> Findings | None:
        """What it found; None: it died. Raises what it raised."""
        try:
            answer = self.pipe.recv()
        except (EOFError, OSError):
            return None
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, Findings)
        return answer

    def end(self) -> None:
        self._process.kill()  # SIGTERM may be ignored here, and so there
        self._process.join()
        self.pipe.close()


def _check_what_is_asked(pipe: Connection) -> None:
    # Ctrl-C reaches all processes of a terminal; the one that started the others ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(EOFError, BrokenPipeError):  # the process that asks is gone
        while True:
            path = pipe.recv()
            try:
                pipe.send(_check(path))
            except BrokenPipeError:
                raise
            except Exception as error:
                pipe.send(error)


def _check(path: Path) -> Findings:
    """Examine a shard and keep what was found."""
    findings = examine(path)
    kept = _kept(path)
    if kept is not None:
        temporary = kept.with_suffix(f".{os.getpid()}")
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(findings.to_json(), encoding="utf-8")
            os.replace(temporary, kept)
        except OSError:  # a full or read-only cache costs time at the next check, and nothing else
            with contextlib.suppress(OSError):
                temporary.unlink()
    return findings


def _recall(path: Path) -> Findings | None:
    """What a check found before in the same shard."""
    kept = _kept(path)
    if kept is None:
        return None
    try:
        findings = Findings.from_json(kept.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return dataclasses.replace(findings, path=path)


def _kept(path: Path) -> Path | None:
    """Where the findings of a shard lie, named after all that can show that it changed; None: unreadable."""
    try:
        digest, now = open_index(path).info.digest, path.stat()
    except (ValueError, OSError):
        return None
    state = [VERSION, str(path.resolve()), digest, now.st_size, now.st_mtime_ns]
    return cache_dir() / "checks" / f"{hashlib.sha256(json.dumps(state).encode()).hexdigest()[:32]}.json"


def _with_lacking(findings: Findings, extensions: Sequence[str]) -> Findings:
    missing = {name: findings.samples - findings.extensions.get(name, 0) for name in extensions}
    lacking = {name: count for name, count in missing.items() if count > 0}
    return dataclasses.replace(findings, lacking=lacking)
