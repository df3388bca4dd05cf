"""ESC-50 and folds: a small release as the repository is laid out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from releases import about, note, read_shards, write_release

from mmlab.sources.catalog import source_class
from mmlab.sources.esc50 import Esc50

COLUMNS = "filename,fold,target,category,esc10,src_file,take"
KINDS = {"dog": (0, True), "sea_waves": (11, True), "can_opening": (34, False)}


def clips() -> list[str]:
    """Of each class two clips of one recording and one of another in each of three folds."""
    rows = []
    for fold in (1, 2, 3):
        for kind, (target, esc10) in KINDS.items():
            for recording, take in (
                (f"{fold}{target}1", "A"),
                (f"{fold}{target}1", "B"),
                (f"{fold}{target}2", "A"),
            ):
                file = f"{fold}-{recording}-{take}-{target}.wav"
                rows.append(f"{file},{fold},{target},{kind},{esc10},{recording},{take}")
    return rows


def prepared(tmp_path: Path, rows: list[str], *, columns: str = COLUMNS, **settings: Any) -> Path:
    files: dict[str, Any] = {f"audio/{row.partition(',')[0]}": row.encode() for row in clips()}
    files["meta/esc50.csv"] = "\n".join([columns, *rows]) + "\n"
    path = write_release(tmp_path / "in", files)
    return Esc50(from_file=path, out=tmp_path / "out", **settings).prepare()


def test_clips_are_split_by_fold_and_recording(tmp_path: Path) -> None:
    folder = prepared(tmp_path, clips(), test_fold=2)
    train, val, test = (read_shards(folder, split) for split in ("train", "val", "test"))
    assert {about(one)["fold"] for one in test.values()} == {2}
    assert len(test) == 9
    assert len(train) + len(val) == 18
    recordings = [{about(one)["recording"] for one in part.values()} for part in (train, val)]
    assert not recordings[0] & recordings[1]
    assert {about(one)["label"] for one in val.values()} == {"dog", "sea waves", "can opening"}
    assert len(recordings[1]) == 3, "one of each class"
    one = test["2-2111-B-11"]
    assert about(one) == {
        "label": "sea waves", "audio_id": "2-2111-B-11", "fold": 2, "recording": "2111", "esc10": True,
        "group": "2111",
    }  # fmt: skip
    assert one["wav"].startswith(b"2-2111-B-11.wav")


def test_the_last_fold_and_ten_classes(tmp_path: Path) -> None:
    folder = prepared(tmp_path, clips(), only_esc10=True, val=0)
    test = read_shards(folder, "test")
    assert {about(one)["fold"] for one in test.values()} == {3}
    assert {about(one)["label"] for one in test.values()} == {"dog", "sea waves"}
    assert note(folder)["splits"]["train"]["samples"] == 12
    assert source_class("esc50") is Esc50


ROWS = {
    "a.wav,x,0,dog,True,1,A": "fold is 'x'", "a.wav,1,0,dog,yes,1,A": "esc10 'yes': a number, and True or",
    "a.wav,1": "more or fewer columns", "a.wav,1,0,dog,True,1,A,B": "more or fewer columns",
}  # fmt: skip


def test_true_in_small_letters(tmp_path: Path) -> None:
    small = [row.replace("True", "true").replace("False", "false") for row in clips()]
    test = read_shards(prepared(tmp_path, small, only_esc10=True), "test")
    assert {about(one)["label"] for one in test.values()} == {"dog", "sea waves"}


def test_tables_that_are_not_as_released(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"cannot test on fold 5: .* has 1, 2, 3, and training needs another"
    ):
        prepared(tmp_path / "fold", clips(), test_fold=5)
    with pytest.raises(ValueError, match="val is 4: it takes from 0 to 3 of the 4 recordings of dog"):
        prepared(tmp_path / "val", clips(), val=4)
    old = "filename,fold,category,category_name,esc10,src,take"
    with pytest.raises(ValueError, match=r"esc50\.csv in .* is not as released: no column src_file"):
        prepared(tmp_path / "old", clips(), columns=old)
    for row, said in ROWS.items():
        with pytest.raises(ValueError, match=rf"meta/esc50\.csv, line 2, in .* is not as released: .*{said}"):
            prepared(tmp_path / row.replace(",", ""), [row, *clips()])
    for number, content in enumerate(("\0" * 200_000, '"a.wav,1,0')):
        with pytest.raises(ValueError, match=r"meta/esc50\.csv in .* is not as released: line \d+: "):
            prepared(tmp_path / f"broken{number}", [content])
    with pytest.raises(ValueError, match="has no sample"):
        prepared(tmp_path / "empty", [])
