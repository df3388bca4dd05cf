"""Checks shards, several at a time, and keeps what it found: a second check answers from that."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
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
    left = [path for path in paths if path not in found]
    if jobs == 0:
        for path in left:
            found[path] = _check(path)
            done(path)
    else:
        # Where a process dies, nobody knows which shard it was: the rest is read again, each on its own.
        dead = _in_processes(left, jobs, found, done)
        for path in dead:
            if _in_processes([path], 1, found, done):
                found[path] = Findings(path, damage="the process that read it died: out of memory?")
                done(path)
    extensions = sorted({name for findings in found.values() for name in findings.extensions})
    return [_with_lacking(found[path], extensions) for path in paths]


def _in_processes(
    paths: Sequence[Path], jobs: int, found: dict[Path, Findings], done: Callable[[Path], None]
) -> list[Path]:
    """Check shards in processes of their own; returns those that are left when a process dies."""
    if not paths:
        return []
    others = set(multiprocessing.active_children())
    # Spawned, not forked: a fork may inherit a lock that a thread of this process holds.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(jobs, len(paths)), mp_context=context, initializer=_leave_interrupts)
    futures: dict[Future[Findings], Path] = {pool.submit(_check, path): path for path in paths}
    try:
        for future in as_completed(futures):
            try:
                found[futures[future]] = future.result()
            except BrokenProcessPool:
                continue
            done(futures[future])
    except BaseException:
        # A shard can take minutes: who interrupts does not wait for it.
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        raise
    pool.shutdown()
    return [path for path in paths if path not in found]


def _leave_interrupts() -> None:
    """Ctrl-C reaches all processes of a terminal; the one that started the others ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


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
