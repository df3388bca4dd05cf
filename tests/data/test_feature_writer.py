"""A folder of features: goes on where it was stopped, is made anew where something changed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from test_features import Letters, Made, sample

from mmlab.batch import Modality
from mmlab.data.feature_writer import FeatureWriter
from mmlab.data.features import MANIFEST, Features, Manifest
from mmlab.data.shards import ShardSet, write_shards
from mmlab.data.signal import SignalReader

SAMPLES = [sample(number) for number in range(26)]
ROWS = sum(number % 4 for number in range(26))
"""Captions of all samples."""


def tars(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.tar")}


def rows_of(made: Made, *shards: int) -> int:
    """Captions in raw shards of 8 samples."""
    return sum(n % 4 for shard in shards for n in range(shard * 8, min(shard * 8 + 8, 26)))


def test_what_was_stopped_goes_on_and_gives_the_same_bytes(tmp_path: Path) -> None:
    whole = Made(tmp_path / "whole", SAMPLES).write()
    made = Made(tmp_path, SAMPLES)
    made.letters._stop_at = rows_of(made, 0, 1) + 1
    with pytest.raises(KeyboardInterrupt):
        made.write()
    assert sorted(tars(made.folder)) == ["train-000000.tar", "train-000001.tar"]
    with pytest.raises(ValueError, match=r"no complete features in .*mmlab data features"):
        Features.open(made.folder)
    # A process that was killed leaves this, too.
    (made.folder / ".making-killed").mkdir()
    with (made.folder / ".features.finished").open("a") as file:
        file.write('\n["train-000002.tar", "ab')
    again = Made(tmp_path, SAMPLES)
    again.write()
    assert again.letters._rows == rows_of(made, 2, 3)
    assert tars(again.folder) == tars(whole.folder)
    assert (again.folder / MANIFEST).read_text() == (whole.folder / MANIFEST).read_text()
    assert not list(again.folder.glob(".making*"))


def test_what_is_complete_is_not_made_again(tmp_path: Path) -> None:
    made = Made(tmp_path, SAMPLES)
    made.write()
    assert made.letters._rows == ROWS
    before = {path: path.stat().st_mtime_ns for path in made.folder.glob("*.tar")}
    made.write()
    assert made.letters._rows == ROWS
    assert {path: path.stat().st_mtime_ns for path in made.folder.glob("*.tar")} == before


def test_a_split_of_its_own_joins_those_that_are_there(tmp_path: Path) -> None:
    made = Made(tmp_path, SAMPLES)
    made.write()
    features = made.write(splits=["val"])
    assert sorted(features.manifest.splits) == ["train", "val"]
    assert made.letters._rows == 2 * ROWS
    assert made.write(splits=["train", "val"]).manifest == features.manifest
    assert made.letters._rows == 2 * ROWS


@pytest.mark.parametrize("change", ["encoder", "reader", "shards", "precision", "damage"])
def test_what_changed_is_made_anew(tmp_path: Path, change: str) -> None:
    made = Made(tmp_path, SAMPLES)
    before = made.write(splits=["val"])
    settings = {}
    if change == "encoder":
        made.letters = Letters(2.0)
        made.encoders = {**made.encoders, Modality.TEXT: made.letters}
    elif change == "reader":
        made.readers = (made.readers[0], SignalReader(channels=1, max_steps=3))
    elif change == "shards":
        made.raw = ShardSet(write_shards(SAMPLES[:9], tmp_path / "fewer", "train", max_samples=8))
    elif change == "precision":
        settings = {"precision": "float32"}
    else:
        path = before.folder / "val-000002.tar"
        shutil.copy(before.folder / "val-000001.tar", path)
        os.utime(path)
    if change in ("reader", "shards", "damage"):
        wanted = {
            "reader": "reader of signal: max_steps None -> 3",
            "shards": "shards of val changed",
            "damage": "features of val are damaged",
        }[change]
        with pytest.raises(ValueError, match=rf"do not fit \({wanted}\): make them.*leave"):
            list(made.batches(before, split="val"))
    rows = made.letters._rows
    after = made.write(splits=["val"], **settings)
    assert made.letters._rows > rows
    assert after.manifest.splits["val"].raw == made.raw.digest
    assert set(tars(after.folder)) == set(after.manifest.splits["val"].shards)
    list(made.batches(after, split="val"))


def test_a_reader_may_ask_for_every_row_later(tmp_path: Path) -> None:
    made = Made(tmp_path, SAMPLES)
    features = made.write(splits=["val"])
    made.readers[0].every = True  # type: ignore[attr-defined]
    (batch,) = made.batches(features, split="val", steps=1)
    assert batch.text is not None
    assert batch.text.owner.tolist() == [-1, 1, 2, 2, 3, 3, 3, -1]


def test_evaluation_finds_the_features_of_the_same_shards(tmp_path: Path) -> None:
    made = Made(tmp_path, SAMPLES)
    features = made.write(splits=["train", "test"])
    assert features.join("predict", made.raw) is not None
    other = ShardSet(write_shards(SAMPLES[:3], tmp_path / "other", "x"))
    assert features.join("predict", other) is None
    # Those of training may be augmented.
    assert Made(tmp_path / "b", SAMPLES).write().join("val", made.raw) is None


def test_folders_that_are_not_ours_are_left_alone(tmp_path: Path) -> None:
    made = Made(tmp_path, SAMPLES)
    made.folder.mkdir()
    (made.folder / "thesis.txt").write_text("all of it")
    with pytest.raises(ValueError, match="not empty and holds no features: name another folder"):
        made.write()
    assert [path.name for path in made.folder.iterdir() if not path.name.startswith(".")] == ["thesis.txt"]


def test_two_processes_do_not_write_one_folder(tmp_path: Path) -> None:
    wanted = Manifest("float16", 0, 0, {}, {})
    with (
        FeatureWriter.open(tmp_path / "f", wanted),
        pytest.raises(ValueError, match="another process"),
        FeatureWriter.open(tmp_path / "f", wanted),
    ):
        pass


@pytest.mark.parametrize("text", ["", "{}", '{"version": 2}', "[]", '{"version": 1, "towers": 3}'])
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(ValueError, match=r"features.json: .*make them with `mmlab data features"):
        Features.open(tmp_path)
