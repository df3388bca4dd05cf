"""What a submission freezes: configs and code as they are now; later edits do not reach queued jobs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

LARGEST = 1_000_000
"""Bytes of a file that git does not know, and that is copied all the same."""
_CONFIG = ("--config", "-c")


@dataclass(frozen=True)
class Checkout:
    """A git checkout that code comes from."""

    root: Path
    commit: str | None
    """None before the first commit."""
    dirty: bool
    """Whether files differ from the commit, or are new."""


def checkout_of(folder: Path) -> Checkout | None:
    """The checkout that a folder stands in; None: it is in none, ignored there, or there is no git."""
    root = _git(folder, "rev-parse", "--show-toplevel")
    if root is None or not root.strip():
        return None
    if _git(folder, "check-ignore", "-q", ".") is not None:
        return None  # a package installed in a project's own .venv is not its code
    commit = _git(folder, "rev-parse", "--verify", "-q", "HEAD")
    top = Path(root.rstrip("\n")).resolve()
    dirty = bool(_git(top, "status", "--porcelain"))
    return Checkout(top, None if commit is None else commit.strip(), dirty)


def freeze_code(folders: Sequence[Path], out: Path, *, runs: Path) -> tuple[list[Path], list[Checkout]]:
    """Copy the checkouts that folders with code stand in, as they are in the working tree.

    Copied are tracked files, and those of at most :data:`LARGEST` bytes that git would not ignore; nothing of
    earlier runs.

    Args:
        folders: Where Python looks for modules, the first first.
        out: A folder for the copies.
        runs: The folder of run directories.

    Returns:
        Where Python is to look instead, and the checkouts. A folder in no checkout stays as it is.
    """
    found = {folder.resolve(): checkout_of(folder) for folder in folders}
    checkouts = {one.root: one for one in found.values() if one is not None}
    targets = {}
    for number, root in enumerate(checkouts):
        targets[root] = out if len(checkouts) == 1 else out / f"{number}-{root.name}"
        for name in _files(root):
            if not (root / name).is_relative_to(runs.resolve()):
                _copy(root / name, targets[root] / name)
    places = []
    for folder, checkout in found.items():
        place = folder
        if checkout is not None:
            place = targets[checkout.root] / folder.relative_to(checkout.root)
            place.mkdir(parents=True, exist_ok=True)
        places.append(place)
    return places, list(checkouts.values())


def _files(root: Path) -> list[str]:
    tracked = _git(root, "ls-files", "-z") or ""
    others = _git(root, "ls-files", "-z", "--others", "--exclude-standard") or ""
    small = [
        name
        for name in others.split("\0")
        if name and (root / name).is_file() and (root / name).stat().st_size <= LARGEST
    ]
    return [name for name in tracked.split("\0") if name] + small


def _copy(source: Path, target: Path) -> None:
    """Copy a file, or a link as a link; what was deleted, and submodules, are left out."""
    if source.is_symlink():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        os.symlink(os.readlink(source), target)
    elif source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)


def config_files(words: Sequence[str]) -> list[Path]:
    """The config files that a command line names, in order."""
    return [Path(words[place]) if name is None else Path(name) for place, name in _configs(words)]


def copy_configs(words: Sequence[str], out: Path) -> list[str]:
    """Copy the config files that a command line names; returns it with the copies' paths.

    Raises:
        OSError: A file cannot be read.
    """
    found = list(words)
    for number, (place, name) in enumerate(_configs(words)):
        source = Path(words[place] if name is None else name)
        out.mkdir(parents=True, exist_ok=True)
        target = out / f"{number}-{re.sub(r'[^A-Za-z0-9_.-]', '_', source.name)}"
        shutil.copyfile(source, target)
        found[place] = str(target) if name is None else f"{words[place].partition('=')[0]}={target}"
    return found


def _configs(words: Sequence[str]) -> list[tuple[int, str | None]]:
    """Places of words that name config files; with the name where it stands behind `--config=`."""
    found: list[tuple[int, str | None]] = []
    for place, word in enumerate(words):
        option, equal, name = word.partition("=")
        if equal and option in _CONFIG:
            found.append((place, name))
        elif place > 0 and words[place - 1] in _CONFIG:
            found.append((place, None))
    return found


def _git(folder: Path, *words: str) -> str | None:
    """What git says, or None where it refuses or is not there."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=60, check=False,
            errors="surrogateescape",
        )  # fmt: skip
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
