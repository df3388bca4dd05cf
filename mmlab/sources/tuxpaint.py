"""The stamps of Tux Paint as their Debian package releases them."""

from __future__ import annotations

import gzip
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from mmlab.assets.debian import deb_control, read_deb

PACKAGE = "tuxpaint-stamps-default"
_STAMPS = "usr/share/tuxpaint/stamps/"
_DOCUMENTS = f"usr/share/doc/{PACKAGE}/"
_SOUNDS = ("ogg", "wav")
_LANGUAGE = r"[A-Za-z]+(?:_[A-Z]+)?(?:@\w+)?"
_SPOKEN = re.compile(rf"(.+)_desc(?:_({_LANGUAGE}))?")
_CAPTION = re.compile(rf"({_LANGUAGE})\.utf8=(.+)")


@dataclass(frozen=True, slots=True)
class Stamp:
    """A picture and what the package has for it."""

    path: str
    """Below the folder of stamps, without extension: `animals/mammals/elephant`."""
    png: bytes
    captions: dict[str, str]
    """By language, as the package names them; `en` is always there."""
    spoken: dict[str, tuple[str, bytes]]
    """Spoken captions by language: kind of file (`ogg`, `wav`) and content."""
    effect: tuple[str, bytes] | None
    """The sound that the thing makes."""


@dataclass(frozen=True, slots=True)
class Release:
    """What the package holds."""

    stamps: tuple[Stamp, ...]
    """Sorted by path."""
    left_out: dict[str, int]
    """Number of pictures left out, by reason."""
    copyright: bytes
    changes: bytes
    """Upstream's history, which names the authors and licences of many pictures."""


def package_version(deb: Path) -> str:
    """The version of the package.

    Raises:
        ValueError: There is no such file, it is broken, or it is another package.
    """
    if not deb.is_file():
        raise ValueError(f"there is no file {deb}.")
    control = deb_control(deb)
    if control.get("Package") != PACKAGE:
        raise ValueError(f"{deb} is the package {control.get('Package')}, not {PACKAGE}.")
    return control["Version"]


def read_stamps(
    deb: Path, *, spoken: Collection[str], effects: bool, show: Callable[[int], None] | None = None
) -> Release:
    """Read the package.

    Args:
        deb: The package's file.
        spoken: Languages whose spoken captions are kept in memory.
        effects: Whether sound effects are.
        show: Called with the bytes of the package that are done.

    Raises:
        ValueError: The package is cut short or broken.
    """
    files: dict[str, dict[str, bytes]] = defaultdict(dict)
    documents = {}
    left_out: Counter[str] = Counter()
    for name, content in read_deb(deb, show=show):
        if name.startswith(_DOCUMENTS):
            documents[name.removeprefix(_DOCUMENTS)] = content
            continue
        stem, _, kind = name.removeprefix(_STAMPS).rpartition(".")
        if stem.startswith("symbols/"):
            left_out["symbols (letters, coins, ...)"] += kind in ("png", "svg")
        elif kind == "svg":
            left_out["drawn as SVG"] += 1
        elif kind in ("png", "txt") or (kind in _SOUNDS and _is_wanted(stem, spoken, effects)):
            files[stem][kind] = content
    stamps = []
    for path in sorted(files):
        if "png" not in files[path]:
            continue
        captions = read_captions(files[path].get("txt", b""))
        if "en" not in captions:
            left_out["mirror images" if path.endswith("_mirror") else "without a caption"] += 1
            continue
        heard = {language: _sound(files.get(_spoken_stem(path, language), {})) for language in spoken}
        stamps.append(
            Stamp(
                path=path,
                png=files[path]["png"],
                captions=captions,
                spoken={language: sound for language, sound in heard.items() if sound is not None},
                effect=_sound(files[path]),
            )
        )
    changes = gzip.decompress(documents["changelog.gz"]) if "changelog.gz" in documents else b""
    return Release(tuple(stamps), dict(left_out), documents.get("copyright", b""), changes)


def _is_wanted(stem: str, spoken: Collection[str], effects: bool) -> bool:
    match = _SPOKEN.fullmatch(stem)
    return effects if match is None else (match[2] or "en") in spoken


def _spoken_stem(path: str, language: str) -> str:
    return f"{path}_desc" if language == "en" else f"{path}_desc_{language}"


def _sound(files: Mapping[str, bytes]) -> tuple[str, bytes] | None:
    return next(((kind, files[kind]) for kind in _SOUNDS if kind in files), None)


def read_captions(text: bytes) -> dict[str, str]:
    """Captions by language: the first line is English, then come lines like `fr.utf8=Une pomme.`."""
    lines = text.decode("utf-8", errors="replace").splitlines()
    captions = {"en": lines[0].strip()} if lines else {}
    for line in lines[1:]:
        if match := _CAPTION.fullmatch(line.strip()):
            captions[match[1]] = match[2].strip()
    return {language: caption for language, caption in captions.items() if caption}
