"""WordNet 3.0: the database of its nouns, inside a Debian package."""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath

from mmlab.assets.debian import read_deb
from mmlab.assets.fetch import WrongFileError

_FILES = {
    "usr/share/wordnet/index.noun": "a490d99d93d017bf4822fe2f0ffa51fd73911ce271dc7535fade21f8814b5a04",
    # Princeton's but for the offsets of related verbs and adjectives, which Debian compiles from other files.
    "usr/share/wordnet/data.noun": "fea17d2f9656611334eac790e5d69e47645fa180c4aa481fb4cd9b3520754ca2",
    "usr/share/wordnet/noun.exc": "2b5d675c380b39ecf595af9fa9d4e7feb1d58c643b0bff08c40ed5bfe41fab7a",
}
"""Names in the package, and their SHA-256."""
_LICENCE = "usr/share/doc/wordnet-base/copyright"
_REMEDY = (
    "Take wordnet-base 1:3.0-37 from a Debian mirror, then `mmlab assets fetch wordnet --from FILE.deb`."
)


def convert_wordnet(deb: Path, out: Path) -> None:
    """Write the files of nouns as they are, and their licence.

    The files are checked, not the package: releases and derivatives of Debian build theirs anew.

    Raises:
        WrongFileError: A file is missing, or another one.
        ValueError: The package is broken, or none.
    """
    missing = {*_FILES, _LICENCE}
    for name, content in read_deb(deb):
        if name in missing:
            if name in _FILES and (found := hashlib.sha256(content).hexdigest()) != _FILES[name]:
                raise WrongFileError(
                    f"{deb} holds another {name}: its SHA-256 is {found}, not {_FILES[name]}.",
                    _REMEDY,
                )
            missing.remove(name)
            (out / PurePosixPath(name).name).write_bytes(content)
    if missing:
        raise WrongFileError(
            f"{deb} is not Debian's package wordnet-base: it has no {min(missing)}.",
            _REMEDY,
        )
