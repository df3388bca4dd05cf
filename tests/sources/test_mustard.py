"""MUStARD: a small release with and without sounds, and the released utterances."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from releases import about, read_shards, write_release

from mmlab.sources.catalog import source_class
from mmlab.sources.mustard import Mustard


def said(show: str, number: int, **changes: Any) -> dict[str, Any]:
    return {
        "utterance": f"Great  idea\n{number}.", "speaker": "ANN", "context": [f"Line {number}.", "And?"],
        "context_speakers": ["BOB", "CY"], "show": show, "sarcasm": number % 2 == 0, **changes,
    }  # fmt: skip


def release(**changes: Any) -> dict[str, Any]:
    rows = {f"1_{n}": said("BBT", n, context=[f"Line {n // 2}.", "And?"]) for n in range(6)}
    for number in range(6):  # nothing in common but for pairs of utterances
        rows[f"1_{number}"]["context"][1] = f"And {number // 2}?"
    return rows | {f"2_{n}": said("FRIENDS", n) for n in range(3)} | changes


def prepared(
    tmp_path: Path, rows: dict[str, Any], files: dict[str, Any] | None = None, **settings: Any
) -> Path:
    path = write_release(tmp_path / "in", {"data/sarcasm_data.json": rows, **(files or {})})
    return Mustard(from_file=path, out=tmp_path / "out", **settings).prepare()


def test_an_utterance_stands_before_what_was_said_before(tmp_path: Path) -> None:
    folder = prepared(tmp_path, release(), val=2)
    test = read_shards(folder, "test")
    assert set(test) == {"2_0", "2_1", "2_2"}
    assert about(test["2_1"]) == {
        "label": "sincere", "utterance": "Great idea 1.", "speaker": "ANN",
        "history": "BOB: Line 1.\nCY: And?", "in_context": "Great idea 1.\nCY: And?\nBOB: Line 1.",
        "show": "FRIENDS", "utterance_id": "2_1", "group": "2_1",
    }  # fmt: skip
    assert about(test["2_2"])["label"] == "sarcastic"
    train, val = read_shards(folder, "train"), read_shards(folder, "val")
    assert (len(train), len(val)) == (4, 2)
    scenes = [{about(one)["history"] for one in part.values()} for part in (train, val)]
    assert not scenes[0] & scenes[1], "those that share their context stay together"


def test_sounds_are_taken_where_there_are(tmp_path: Path) -> None:
    sounds = {"data/audios/2_0.wav": b"a", "data/audios/2_1.mp3": b"b", "data/videos/2_2.mp4": b"c"}
    test = read_shards(prepared(tmp_path, release(), sounds, val=0), "test")
    assert [set(test[f"2_{n}"]) for n in range(3)] == [{"json", "wav"}, {"json", "mp3"}, {"json"}]


def test_another_show_is_the_test(tmp_path: Path) -> None:
    folder = prepared(tmp_path, release(), val=1, test_show="BBT")
    assert {about(one)["show"] for one in read_shards(folder, "train").values()} == {"FRIENDS"}
    assert len(read_shards(folder, "test")) == 6
    for settings in ({"test_show": "ER"}, {"val": 6}, {"val": -1}):
        with pytest.raises(ValueError, match=r"cannot test on the show .*: there are BBT, FRIENDS, and \d"):
            prepared(tmp_path / str(settings), release(), **settings)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"utterance": "x"}, "9_9 has no field speaker, context, .*; it is an object of utterance, speaker"),
        (
            {name: value for name, value in said("BBT", 0).items() if name != "sarcasm"},
            "9_9 has no field sarcasm;",
        ),
        (said("BBT", 0, context=None), "9_9 has no lists as context and context_speakers"),
        (said("BBT", 0, utterance=" \n"), "9_9 has an empty utterance"),
        (said("BBT", 0, sarcasm="true"), "9_9 has a label that is not true or false"),
        (said("BBT", 0, context=["a"]), "9_9 has .* lines without their speakers"),
        (said("BBT", 0, utterance=None), "9_9 has lines that are no text"),
        ([], "9_9 has no field utterance, speaker"),
    ],
)
def test_a_row_that_is_not_as_released(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"sarcasm_data\.json in .* is not as released: .*{message}"):
        prepared(tmp_path, release(**{"9_9": row}))
    with pytest.raises(ValueError, match=r"it lacks sarcasm_data\.json"):
        Mustard(from_file=write_release(tmp_path / "no", {"a.txt": ""}), out=tmp_path / "o").prepare()


def test_the_released_mustard(public_data: Path, tmp_path: Path) -> None:
    folder = Mustard(from_file=public_data / "mustard-text", out=tmp_path / "out").prepare()
    parts = {split: read_shards(folder, split) for split in ("train", "val", "test")}
    assert {split: len(samples) for split, samples in parts.items()} == {"train": 230, "val": 30, "test": 279}
    assert {about(one)["show"] for one in parts["test"].values()} == {"FRIENDS"}
    assert "FRIENDS" not in {about(one)["show"] for one in parts["train"].values()}
    labels = Counter(about(one)["label"] for one in parts["test"].values())
    assert labels == {"sincere": 165, "sarcastic": 114}
    one = about({**parts["train"], **parts["val"]}["1_60"])
    assert one["in_context"].splitlines()[:2] == [
        "It's just a privilege to watch your mind at work.", "SHELDON: My apologies. What's your plan?",
    ]  # fmt: skip
    assert source_class("mustard") is Mustard
