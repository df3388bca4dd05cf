"""Tux Paint stamps: pictures with captions in many languages, spoken captions and sound effects."""

from __future__ import annotations

import hashlib
import io
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from PIL import Image

from mmlab.assets.cache import cache_dir
from mmlab.assets.fetch import download, sha256_of
from mmlab.assets.packages import resolve_deb
from mmlab.assets.progress import progress
from mmlab.data.shards import write_shards
from mmlab.data.source import Source
from mmlab.sources.prepared import Prepared
from mmlab.sources.split import TRAIN, split
from mmlab.sources.tuxpaint import PACKAGE, Release, Stamp, package_version, read_stamps

_REMEDY = (
    f"Fetch {PACKAGE} (version 2022.06.04 or newer, `_all.deb`) from a Debian mirror, or with "
    f"`apt-get download {PACKAGE}`, then `mmlab data prepare stamps --from FILE.deb`."
)
_LICENCE = "GPL-2; pictures and sounds partly public domain, GFDL or CC BY(-SA), see CHANGES.txt"
_ATTRIBUTION = f"""# Tux Paint stamps

Pictures, captions and sounds of these shards are the work of the contributors to Tux Paint
(tuxpaint.org), as Debian distributes them in the package `{PACKAGE}`.

The collection is licensed under the GNU General Public License, version 2 (`copyright` beside this file).
Many pictures and sounds in it come from the public domain or under the GFDL or a Creative Commons licence;
`CHANGES.txt` beside this file names their authors, sources and licences.

mmlab chose the pictures that come as PNG with a caption, reduced the largest ones, and divided them into
train, val and test.
"""
_FORMAT = 1
"""Raised when what is written changes: what older releases prepared is made anew then."""
_HELD_OUT = {"test": 100, "val": 60}
_LANGUAGES = ("en", "fr", "es", "ru", "ro", "ca", "bg", "be", "el", "da", "de", "it", "nl", "pt")
"""Caption languages by default. Stamps that share a caption in any of these stay in one split, whatever the
settings, so that results with different languages are about the same pictures."""
_SPOKEN = _LANGUAGES[:10]
"""Languages with more than 200 spoken captions, and English with 65."""


class Stamps(Source):
    """The stamps of the drawing program Tux Paint, from Debian's package `tuxpaint-stamps-default`.

    549 PNG pictures, often photographs cut out on transparency, of animals, food, tools, vehicles, ...; 538
    of them have captions (498 different English ones). Left out are stamps drawn as SVG, which would need a
    renderer, letters and coins (`symbols/`), and mirror images of stamps.

    A sample has `png`; `json` with `caption` (English), `captions` by language, `group` (equal for equal
    English captions), `category`, `name`, `size` in pixels as released, `licence`; spoken captions as
    `en.ogg`, `fr.ogg`, ... (`pt_br.wav`); a sound effect as `effect.ogg` or `effect.wav`.
    """

    name = "stamps"

    def __init__(
        self,
        *,
        languages: Sequence[str] = _LANGUAGES,
        spoken: Sequence[str] = _SPOKEN,
        effects: bool = True,
        max_side: int = 512,
        seed: int = 0,
        from_file: Path | None = None,
        out: Path | None = None,
    ) -> None:
        """Settings.

        Args:
            languages: Of the captions, as the package names them (`fr`, `pt_BR`); `en` is always there.
            spoken: Languages of the spoken captions: en, fr, es, ru, ro, ca, bg, be, el, da; a few nl, ml and
                pt_BR.
            effects: Whether to keep the sounds that things make.
            max_side: Larger pictures are reduced to this length in pixels, transparency kept.
            seed: Of the split into train, val (60 English captions) and test (100). All captions that a
                picture has stay in its split.
            from_file: The package's .deb; None: apt-get says where to fetch it.
            out: Folder to write; None: one in the cache directory.
        """
        self.languages = tuple(dict.fromkeys(("en", *languages)))
        self.spoken = tuple(spoken)
        self.effects = effects
        self.max_side = max_side
        self.seed = seed
        self.from_file = from_file
        settings = {"languages": self.languages, "spoken": self.spoken, "effects": effects}
        settings |= {"max_side": max_side, "seed": seed, "format": _FORMAT}
        self._prepared = Prepared(self.name, settings, out=out)

    def prepare(self) -> Path:
        """Fetch the package and write the shards, unless they are there.

        Raises:
            FetchError: The package cannot be fetched, or the disk is full.
            ValueError: The .deb is broken or is not the stamps', no caption is in a language asked for, or
                `out` holds something else.
        """
        version = None if self.from_file is None else package_version(self.from_file)
        if found := self._prepared.find(version):
            return found
        with self._prepared.lock():
            if found := self._prepared.find(version):  # another process was faster
                return found
            deb = self.from_file
            if deb is None:
                deb = download(resolve_deb(PACKAGE, remedy=_REMEDY), cache_dir() / "downloads")
            return self._prepared.build(package_version(deb), lambda folder: self._write(deb, folder))

    def _write(self, deb: Path, folder: Path) -> dict[str, Any]:
        """Write shards and attribution; returns what `dataset.json` says of them."""
        with progress(f"unpacking {deb.name}", total=deb.stat().st_size, in_bytes=True) as show:
            release = read_stamps(deb, spoken=self.spoken, effects=self.effects, show=show)
        self._check_languages(release)
        splits = split(
            {stamp.path: _normal(stamp.captions["en"]) for stamp in release.stamps},
            marks={stamp.path: self._marks(stamp) for stamp in release.stamps},
            held_out=_HELD_OUT,
            seed=self.seed,
        )
        facts = {}
        with progress("writing shards", total=len(release.stamps), in_bytes=False) as show:
            done = count(1)
            for name in (TRAIN, *_HELD_OUT):
                chosen = [stamp for stamp in release.stamps if splits[stamp.path] == name]
                # Not by name, which would put all birds side by side.
                chosen.sort(key=lambda stamp: hashlib.sha256(stamp.path.encode()).digest())
                write_shards(self._samples(chosen, done, show), folder, name)
                facts[name] = self._count(chosen)
        (folder / "copyright").write_bytes(release.copyright)
        (folder / "CHANGES.txt").write_bytes(release.changes)
        (folder / "ATTRIBUTION.md").write_text(_ATTRIBUTION, encoding="utf-8")
        return {
            "package": PACKAGE, "sha256": sha256_of(deb), "licence": _LICENCE,
            "splits": facts, "left_out": release.left_out,
        }  # fmt: skip

    def _check_languages(self, release: Release) -> None:
        written = {language for stamp in release.stamps for language in stamp.captions}
        heard = {language for stamp in release.stamps for language in stamp.spoken}
        asked_for = (("caption", self.languages, written), ("spoken caption", self.spoken, heard))
        for kind, asked, there in asked_for:
            if missing := [language for language in asked if language not in there]:
                raise ValueError(
                    f"no stamp has a {kind} in {', '.join(missing)}; there are {', '.join(sorted(there))}."
                )

    def _marks(self, stamp: Stamp) -> set[tuple[str, str]]:
        """What no two splits may share: captions in the common and chosen languages, pictures, sounds."""
        marks = {
            (language, _normal(stamp.captions[language]))
            for language in {*_LANGUAGES, *self.languages, *self.spoken} & stamp.captions.keys()
        }
        sounds = [*stamp.spoken.values(), *([] if stamp.effect is None else [stamp.effect])]
        for content in (stamp.png, *(content for _, content in sounds)):
            marks.add(("content", hashlib.sha256(content).hexdigest()))
        return marks

    def _samples(
        self, stamps: Sequence[Stamp], done: Iterator[int], show: Callable[[int], None]
    ) -> Iterator[dict[str, Any]]:
        for stamp in stamps:
            show(next(done))
            yield self._sample(stamp)

    def _sample(self, stamp: Stamp) -> dict[str, Any]:
        png, size = _reduce(stamp.png, self.max_side)
        category, _, name = stamp.path.rpartition("/")
        about = {
            "caption": stamp.captions["en"],
            "captions": {
                language: stamp.captions[language]
                for language in self.languages
                if language in stamp.captions
            },
            "group": _normal(stamp.captions["en"]),
            "category": category,
            "name": name,
            "size": size,
            "licence": _LICENCE,
        }
        sample = {"__key__": re.sub(r"[^\w-]+", "_", stamp.path, flags=re.ASCII), "png": png}
        sample["json"] = json.dumps(about, ensure_ascii=False).encode()
        for language, (kind, content) in stamp.spoken.items():
            sample[f"{language.lower()}.{kind}"] = content
        if stamp.effect is not None:
            sample[f"effect.{stamp.effect[0]}"] = stamp.effect[1]
        return sample

    def _count(self, stamps: Sequence[Stamp]) -> dict[str, Any]:
        return {
            "samples": len(stamps),
            "captions": len({_normal(stamp.captions["en"]) for stamp in stamps}),
            "languages": dict(Counter(lang for s in stamps for lang in self.languages if lang in s.captions)),
            "spoken": dict(Counter(language for stamp in stamps for language in stamp.spoken)),
            "effects": sum(stamp.effect is not None for stamp in stamps),
        }


def _normal(caption: str) -> str:
    """A caption without what does not tell it from another: case, punctuation, spacing."""
    words = re.sub(r"\W+", " ", unicodedata.normalize("NFKC", caption).casefold()).split()
    return " ".join(words) or caption


def _reduce(png: bytes, max_side: int) -> tuple[bytes, tuple[int, int]]:
    """The picture, reduced if it is larger than the limit, and its size as released."""
    with Image.open(io.BytesIO(png)) as image:
        size = image.size
        if max(size) <= max_side:
            return png, size
        scale = max_side / max(size)
        wanted = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
        # Pillow weighs the colours of RGBA by their opacity here, so that what is hidden does not bleed in.
        smaller = image.convert("RGBA").resize(wanted, Image.Resampling.LANCZOS)
    with io.BytesIO() as file:
        smaller.save(file, "PNG")
        return file.getvalue(), size
