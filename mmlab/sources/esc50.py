"""ESC-50: five seconds of an environmental sound, of one of fifty classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mmlab.sources.files import ReleasedFiles
from mmlab.sources.folds import by_fold
from mmlab.sources.items import Item
from mmlab.sources.released import Contents, Released

_COLUMNS = ("filename", "fold", "category", "esc10", "src_file")
"""Those that are read, of seven."""
_ESC10 = {"true": True, "false": False}


class Esc50(Released):
    """Five seconds of sound of fifty classes (ESC-50, Piczak 2015).

    A sample is a clip (`wav`): `json` has `label` (the class, such as `sea waves`), `audio_id`, `fold`,
    `recording` (equal for clips that are parts of one), `esc10` (whether it is of the ten classes of ESC-10)
    and `group` (the recording). Test is one of the released folds; val is recordings held out of the others.
    """

    name = "esc50"
    release = (
        "The release is the repository karolpiczak/ESC-50 on GitHub, or its zip: meta/esc50.csv and a folder "
        "`audio` of wav files."
    )
    licence = "CC BY-NC 3.0; that of ESC-10 CC BY 3.0"

    def __init__(
        self,
        *,
        test_fold: int | None = None,
        val: int = 1,
        only_esc10: bool = False,
        from_file: Path | None = None,
        out: Path | None = None,
    ) -> None:
        """Settings.

        Args:
            test_fold: The fold to test on, 1 to 5; None: the last that is there.
            val: Number of recordings of each class that are held out of the other folds.
            only_esc10: Leave out all but the ten classes of ESC-10.
            from_file: Folder or zip of the release.
            out: Folder to write; None: one in the cache directory.
        """
        self.test_fold = test_fold
        self.val = val
        self.only_esc10 = only_esc10
        settings = {"test_fold": test_fold, "val": val, "only_esc10": only_esc10}
        super().__init__(settings=settings, max_side=None, from_file=from_file, out=out)

    def annotations(self, files: ReleasedFiles) -> dict[str, str]:
        """The table of clips."""
        return self.require(files, {"clips": "esc50.csv"})

    def read(self, files: ReleasedFiles, annotations: Mapping[str, str]) -> Contents:
        """A row of the table is a clip."""
        name = annotations["clips"]
        items = []
        for line, row in files.table(name, _COLUMNS):
            with files.naming(name, line):
                items.append(_item(row))
        if self.only_esc10:
            items = [item for item in items if item.about["esc10"]]
        return Contents(by_fold(items, test=self.test_fold, val=self.val, path=files.path))


def _item(row: Mapping[str, str]) -> Item:
    if None in row or None in row.values():  # what csv.DictReader says of too many or too few cells
        raise ValueError("more or fewer columns than the heading has")
    file, fold, category, esc10, recording = (row[column].strip() for column in _COLUMNS)
    clip = file.removesuffix(".wav")
    if not fold.isdecimal() or esc10.lower() not in _ESC10:
        raise ValueError(f"fold is {fold!r} and esc10 {esc10!r}: a number, and True or False")
    about = {
        "label": category.replace("_", " "), "audio_id": clip, "fold": int(fold), "recording": recording,
        "esc10": _ESC10[esc10.lower()], "group": recording,
    }  # fmt: skip
    return Item(key=clip, about=about, media=(f"audio/{file}",))
