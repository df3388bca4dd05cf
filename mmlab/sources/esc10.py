"""ESC-10: five seconds of an environmental sound, with captions made from the names of ten classes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from mmlab.sources.files import ReleasedFiles
from mmlab.sources.folds import by_fold
from mmlab.sources.items import Item
from mmlab.sources.released import Contents, Released

_CAPTIONS = {
    "Dog bark": ("a dog barking", "a dog barks", "the sound of a barking dog"),
    "Rain": ("rain falling", "it is raining", "the sound of rain"),
    "Sea waves": ("waves of the sea", "sea waves rolling in", "the sound of waves at the sea"),
    "Baby cry": ("a baby crying", "a baby cries", "the sound of a crying baby"),
    "Clock tick": ("a clock ticking", "a clock ticks", "the sound of a ticking clock"),
    "Person sneeze": ("a person sneezing", "someone sneezes", "the sound of a sneeze"),
    "Helicopter": ("a helicopter flying", "a helicopter flies past", "the sound of a helicopter"),
    "Chainsaw": ("a chainsaw running", "a chainsaw cuts wood", "the sound of a chainsaw"),
    "Rooster": ("a rooster crowing", "a rooster crows", "the sound of a crowing rooster"),
    "Fire crackling": ("a fire crackling", "a fire crackles", "the sound of a crackling fire"),
}
_CLIP = re.compile(r"(?:.*/)?\d+ - ([^/]+)/((\d)-(\d+)-[A-Z])\.ogg")
"""Class, clip, fold and recording."""
_CREDIT = re.compile(r"- \[(\S+)\.ogg\]:\s*(.+)")


class _Clip(NamedTuple):
    name: str
    """In the release."""
    kind: str
    identifier: str
    fold: int
    recording: str
    """Of which a clip is a part; several clips may be of one."""


class Esc10(Released):
    """Five seconds of sound, ten classes, with captions made from their names (ESC-10, Piczak 2015).

    A sample is a clip (`ogg`): `json` has `captions` (three), `label` (the class), `audio_id`, `fold`,
    `recording` (equal for clips that are parts of one), `group` (the class: clips of one class fit each
    other's captions) and `attribution` (who recorded it, and the licence). Test is one of the released folds;
    val is recordings held out of the others.
    """

    name = "esc10"
    release = (
        "The release is the repository karoldvl/ESC-10 on GitHub (its history; the newest commit only names "
        "ESC-50), or its zip: ten folders, `001 - Dog bark` to `010 - Fire crackling`, of ogg files."
    )
    format = 2
    licence = "CC BY 3.0; each clip's own in `attribution`"

    def __init__(
        self,
        *,
        test_fold: int | None = None,
        val: int = 1,
        from_file: Path | None = None,
        out: Path | None = None,
    ) -> None:
        """Settings.

        Args:
            test_fold: The fold to test on, 1 to 5; None: the last that is there.
            val: Number of recordings of each class that are held out of the other folds.
            from_file: Folder of the release.
            out: Folder to write; None: one in the cache directory.
        """
        self.test_fold = test_fold
        self.val = val
        super().__init__(
            settings={"test_fold": test_fold, "val": val}, max_side=None, from_file=from_file, out=out
        )

    def annotations(self, files: ReleasedFiles) -> dict[str, str]:
        """The credits; what a clip is, is in its name."""
        there = {clip.kind for clip in _clips(files)}
        if missing := sorted(_CAPTIONS.keys() - there):
            raise self.refusal(files, f"clips of {', '.join(missing)}")
        return self.require(files, {"credits": ("README.txt", "README.md")})

    def read(self, files: ReleasedFiles, annotations: Mapping[str, str]) -> Contents:
        """A name is `NUMBER - CLASS/FOLD-RECORDING-TAKE.ogg`."""
        clips = _clips(files)
        credit = dict(_CREDIT.findall(files.text(annotations["credits"])))
        items = [_item(clip, credit) for clip in clips if clip.kind in _CAPTIONS]
        parts = by_fold(items, test=self.test_fold, val=self.val, path=files.path)
        left_out = Counter(clip.kind for clip in clips if clip.kind not in _CAPTIONS)
        return Contents(
            parts, {f"clips of another class, {kind}": number for kind, number in left_out.items()}
        )


def _clips(files: ReleasedFiles) -> list[_Clip]:
    matches = ((name, _CLIP.fullmatch(name)) for name in files.names)
    return [
        _Clip(name, match[1], match[2], int(match[3]), match[4])
        for name, match in matches
        if match is not None
    ]


def _item(clip: _Clip, credit: Mapping[str, str]) -> Item:
    about = {
        "captions": list(_CAPTIONS[clip.kind]), "label": clip.kind.lower(), "audio_id": clip.identifier,
        "fold": clip.fold, "recording": clip.recording, "group": clip.kind.lower(),
    }  # fmt: skip
    if clip.identifier in credit:
        about["attribution"] = credit[clip.identifier].strip()
    return Item(key=clip.identifier, about=about, media=(clip.name,))
