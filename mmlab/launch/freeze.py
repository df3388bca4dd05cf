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
SECONDS = 60.0
"""For git; a slow file system takes a while to look through."""
_CONFIG = ("--config", "-c")
_CODE = "code"


@dataclass(frozen=True)
class Checkout:
    """A git checkout that code comes from."""

    root: Path
    commit: str | None
    """None before the first commit."""
    dirty: bool
    """Whether files differ from the commit, or are new."""


def checkout_of(folder: Path) -> Checkout | None:
    """The checkout that a folder stands in; None: it is in none, or ignored there.

    Raises:
        ValueError: A `.git` lies above the folder, but git is not there, does not answer, or refuses.
    """
    above = next((one for one in (folder, *folder.parents) if (one / ".git").exists()), None)
    if above is None:
        return None
    root = _git(folder, "rev-parse", "--show-toplevel")
    if "parent up to mount point" in root.stderr:
        return None  # git does not look for it on another file system
    top = Path(_said(root).rstrip("\n")).resolve()
    ignored = _git(folder, "check-ignore", "-q", ".")
    if ignored.returncode == 0:
        return None  # a package installed in a project's own .venv is not its code
    if ignored.returncode > 1:
        _said(ignored)
    commit = _git(folder, "rev-parse", "--verify", "-q", "HEAD")
    dirty = bool(_said(_git(top, "status", "--porcelain")))
    return Checkout(top, commit.stdout.strip() if commit.returncode == 0 else None, dirty)


def freeze_code(folders: Sequence[Path], run: Path) -> tuple[list[Path], list[Checkout]]:
    """Copy the checkouts that folders with code stand in, as they are in the working tree.

    Copied are tracked files, and those of at most :data:`LARGEST` bytes that git would not ignore; nothing of
    run directories, wherever they lie.

    Args:
        folders: Where Python looks for modules, the first first.
        run: The run directory; the copies go into its folder `code`.

    Returns:
        Where Python is to look instead, and the checkouts. A folder in no checkout stays as it is.

    Raises:
        ValueError: git does not say what belongs to a checkout.
    """
    found = {folder.resolve(): checkout_of(folder) for folder in folders}
    checkouts = {one.root: one for one in found.values() if one is not None}
    targets, out = {}, run / _CODE
    for number, root in enumerate(checkouts):
        targets[root] = out if len(checkouts) == 1 else out / f"{number}-{root.name}"
        for name in _files(root, run=run.resolve()):
            _copy(root / name, targets[root] / name)
    places = []
    for folder, checkout in found.items():
        place = folder
        if checkout is not None:
            place = targets[checkout.root] / folder.relative_to(checkout.root)
            place.mkdir(parents=True, exist_ok=True)
        places.append(place)
    return places, list(checkouts.values())


def _files(root: Path, *, run: Path) -> list[str]:
    tracked = _said(_git(root, "ls-files", "-z"))
    others = _said(_git(root, "ls-files", "-z", "--others", "--exclude-standard"))
    left_out = {run: True}
    small = [
        name
        for name in others.split("\0")
        if name
        and not _of_a_run((root / name).parent, root, left_out)
        and (root / name).is_file()
        and (root / name).stat().st_size <= LARGEST
    ]
    return [name for name in tracked.split("\0") if name] + small


def _of_a_run(folder: Path, root: Path, known: dict[Path, bool]) -> bool:
    """Whether a folder below a checkout's root is a run directory, or lies in one."""
    if folder not in known:
        known[folder] = folder != root and (
            (folder / "submission.json").exists()
            or ((folder / "run.json").exists() and (folder / "config.yaml").exists())
            or _of_a_run(folder.parent, root, known)
        )
    return known[folder]


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
    """Places of words that name files of settings; with the name where it stands behind `--config=`."""
    found: list[tuple[int, str | None]] = []
    for place, word in enumerate(words):
        option, equal, name = word.partition("=")
        if equal and (option in _CONFIG or _holds_settings(name)):
            found.append((place, name))
        elif place > 0 and (
            words[place - 1] in _CONFIG or (words[place - 1].startswith("--") and _holds_settings(word))
        ):
            found.append((place, None))
    return found


def _holds_settings(name: str) -> bool:
    """Whether it is a file in which an option's settings stand, as in `--data data.yaml`."""
    return name.endswith((".yaml", ".yml")) and Path(name).is_file()


def _git(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Ask git.

    Raises:
        ValueError: It is not there, or does not answer.
    """
    try:
        return subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=SECONDS, check=False,
            errors="surrogateescape", env=os.environ | {"LC_ALL": "C"},
        )  # fmt: skip
    except FileNotFoundError:
        raise ValueError(
            f"{folder} stands in a git checkout, but there is no git on this machine to freeze it with: "
            "load its module or install it"
        ) from None
    except subprocess.TimeoutExpired:
        raise ValueError(
            f"git {words[0]} has not answered within {SECONDS:g} s in {folder}, so its code was not frozen: "
            "try `git status` there"
        ) from None


def _said(done: subprocess.CompletedProcess[str]) -> str:
    """What git has said.

    Raises:
        ValueError: It has refused; with its own words.
    """
    if done.returncode != 0:
        why = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        raise ValueError(f"the code in {done.args[2]} cannot be frozen, git {done.args[3]} says: {why}")
    return done.stdout
