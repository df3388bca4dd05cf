"""CMU-MOSI: what people say of films on video, as features of words, voice and face."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmlab.sources.files import ReleasedFiles
from mmlab.sources.held_out import hold_out
from mmlab.sources.items import Item
from mmlab.sources.released import Contents, Released
from mmlab.sources.split import TRAIN

_WIDTHS = {"text": 100, "audio": 73, "video": 100}
_LABELS = {"0": "negative", "1": "positive"}


class _Said(NamedTuple):
    """A row of `transcripts.csv`."""

    utterance_id: str
    transcript: str
    label: str

    @property
    def video(self) -> str:
        return self.utterance_id.rpartition("_")[0]


class Mosi(Released):
    """Opinions about films, negative or positive, from words, voice and face (CMU-MOSI, Zadeh et al. 2016).

    These are the features of utterances that Poria et al. (2017) released: a sample has `text.npy` (100, of
    a convolutional network over word vectors), `audio.npy` (73, openSMILE) and `video.npy` (100, of a
    three-dimensional convolutional network), and `json` has `label` (negative, positive), `transcript`,
    `utterance_id`, `video` and `group` (the video). Each feature has mean 0 and deviation 1 over the training
    split. Splits are by video: the released test split, and a part of the rest for validation.
    """

    name = "mosi"
    release = (
        "The release is the folder `data` of the repository "
        "soujanyaporia/contextual-utterance-level-multimodal-sentiment-analysis on GitHub: transcripts.csv, "
        "text_train.csv, text_test.csv, and folders text, audio and video."
    )
    licence = "research use"

    def __init__(self, *, val: int = 10, from_file: Path | None = None, out: Path | None = None) -> None:
        """Settings.

        Args:
            val: Number of videos held out of the training split for validation.
            from_file: Folder of the release.
            out: Folder to write; None: one in the cache directory.
        """
        self.val = val
        super().__init__(settings={"val": val}, max_side=None, from_file=from_file, out=out)

    def annotations(self, files: ReleasedFiles) -> dict[str, str]:
        """The transcripts, and for both splits which rows they have and three tables of features."""
        wanted: dict[str, str | Sequence[str]] = {"transcripts": "transcripts.csv"}
        for part in (TRAIN, "test"):
            wanted[f"{part} rows"] = f"text_{part}.csv"
            for name in _WIDTHS:
                wanted[f"{part} {name}"] = f"{name}/{name}_{part}0.csv"
        return self.require(files, wanted)

    def read(self, files: ReleasedFiles, annotations: Mapping[str, str]) -> Contents:
        """A row of the tables is an utterance; its first number says which line of the transcripts it is."""
        said = [_Said(row[0], row[1], row[3]) for row in _table(files, annotations["transcripts"], 4)]
        found = {part: _utterances(files, annotations, part, said) for part in (TRAIN, "test")}
        held = hold_out(found[TRAIN], self.val, label=lambda one: one[0].video, of="training videos")
        parts = {**held, "test": found["test"]}
        scales = {name: _scale([one[1][name] for one in parts[TRAIN]]) for name in _WIDTHS}
        return Contents({part: [_item(*one, scales) for one in rows] for part, rows in parts.items()})


_Features = dict[str, list[float]]
_Scale = tuple[np.ndarray, np.ndarray]


def _utterances(
    files: ReleasedFiles, annotations: Mapping[str, str], part: str, said: Sequence[_Said]
) -> list[tuple[_Said, _Features]]:
    """The utterances of a split with their features."""
    rows = _table(files, annotations[f"{part} rows"], _WIDTHS["text"] + 1)
    tables = {name: _numbers(files, annotations[f"{part} {name}"], width) for name, width in _WIDTHS.items()}
    found = []
    for name, table in tables.items():
        if len(table) != len(rows):
            raise ValueError(
                f"{annotations[f'{part} {name}']} in {files.path} has {len(table)} rows, "
                f"{annotations[f'{part} rows']} has {len(rows)}: fetch both again."
            )
    for number, row in enumerate(rows):
        with files.naming(annotations[f"{part} rows"], number + 1):
            if not row[0].isdecimal() or int(row[0]) >= len(said):
                raise ValueError(f"{row[0]!r} is no line of transcripts.csv, from 0 to {len(said) - 1}")
            one = said[int(row[0])]
        for name in _WIDTHS:
            label = tables[name][number][1]
            with files.naming(annotations[f"{part} {name}"], number + 1):
                if label != one.label or label not in _LABELS:
                    raise ValueError(f"the label is {label}, in transcripts.csv it is {one.label}")
        found.append((one, {name: tables[name][number][0] for name in _WIDTHS}))
    return found


def _table(files: ReleasedFiles, name: str, columns: int) -> list[list[str]]:
    """The rows of a table, without blank ones at its end."""
    reader = csv.reader(io.StringIO(files.text(name), newline=""), strict=True)
    with files.naming(name):
        try:
            rows = list(reader)
        except csv.Error as error:
            raise ValueError(f"line {reader.line_num}: {error}") from error
    while rows and not rows[-1]:
        rows.pop()
    for number, row in enumerate(rows, start=1):
        with files.naming(name, number):
            if len(row) != columns:
                raise ValueError(f"{len(row)} columns instead of {columns}")
    return rows


def _numbers(files: ReleasedFiles, name: str, width: int) -> list[tuple[list[float], str]]:
    """The features and the label of each row."""
    found = []
    for number, row in enumerate(_table(files, name, width + 1), start=1):
        with files.naming(name, number):
            values = [float(value) for value in row[:-1]]
            if not all(map(math.isfinite, values)):
                raise ValueError("a feature is not finite")
        found.append((values, row[-1]))
    return found


def _scale(rows: Sequence[list[float]]) -> _Scale:
    """Mean and deviation of each feature; the deviation of one that never changes counts as 1."""
    table = np.asarray(rows)
    deviation = table.std(axis=0)
    return table.mean(axis=0), np.where(deviation > 0, deviation, 1.0)


def _item(said: _Said, features: _Features, scales: Mapping[str, _Scale]) -> Item:
    arrays = {}
    for name, values in features.items():
        mean, deviation = scales[name]
        arrays[f"{name}.npy"] = ((np.asarray(values) - mean) / deviation).tolist()
    about = {
        "label": _LABELS[said.label], "transcript": said.transcript, "utterance_id": said.utterance_id,
        "video": said.video, "group": said.video,
    }  # fmt: skip
    return Item(key=said.utterance_id, about=about, arrays=arrays)
