"""Voices by their file names, and tables of features: tiny ones as they are released, and the real ones."""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from releases import about, note, read_shards, write_release

from mmlab.sources.emodb import EmoDb
from mmlab.sources.mosi import Mosi
from mmlab.sources.ravdess import Ravdess

VOICES = ["03a01Fa", "03a01Nc", "08a02Wb", "08b10Ta", "16b03Lb", "16a07Ea"]


def voices(tmp_path: Path, names: list[str], **settings: Any) -> Path:
    release = write_release(tmp_path / "in", {f"wav/{name}.wav": name.encode() for name in names})
    return EmoDb(from_file=release, out=tmp_path / "out", **settings).prepare()


def test_a_file_name_says_who_feels_what(tmp_path: Path) -> None:
    folder = voices(tmp_path, [*VOICES, "notes"], test_speaker="16")
    test = read_shards(folder, "test")
    assert set(test) == {"16b03Lb", "16a07Ea"}
    assert test["16b03Lb"]["wav"] == b"16b03Lb"
    assert about(test["16b03Lb"]) == {
        "emotion": "boredom", "sentence": "b03", "speaker": "16", "gender": "female",
        "text": "An den Wochenenden bin ich jetzt immer nach Hause gefahren und habe Agnes besucht.",
        "utterance_id": "16b03Lb", "group": "16b03",
    }  # fmt: skip
    train = read_shards(folder, "train")
    assert {about(members)["emotion"] for members in train.values()} == {
        "happiness", "neutral", "anger", "sadness",
    }  # fmt: skip
    assert note(folder)["left_out"] == {"recordings with another name": 1}


def test_no_speaker_is_heard_in_two_splits(tmp_path: Path) -> None:
    folder = voices(tmp_path, VOICES, val=1)
    heard = [
        {about(members)["speaker"] for members in read_shards(folder, split).values()}
        for split in ("train", "val", "test")
    ]
    assert heard[2] == {"16"}
    assert heard[0] | heard[1] == {"03", "08"}
    assert not heard[0] & heard[1]


def test_voices_that_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot test on speaker 04: there are 03, 08, 16, and training"):
        voices(tmp_path, VOICES, test_speaker="04")
    with pytest.raises(ValueError, match="cannot test on speaker 03: there are 03, and training needs"):
        voices(tmp_path / "one", VOICES[:2])
    with pytest.raises(ValueError, match=r"val is 2: it takes from 0 to 1 of the 2 other speakers"):
        voices(tmp_path / "two", VOICES, val=2)
    with pytest.raises(ValueError, match=r"lacks recordings named like 03a01Fa\.wav; it holds wav/"):
        voices(tmp_path / "three", ["first", "second"])


def test_the_released_emodb(public_data: Path, tmp_path: Path) -> None:
    folder = EmoDb(from_file=public_data / "emodb", test_speaker="03", out=tmp_path / "out").prepare()
    train, test = read_shards(folder, "train"), read_shards(folder, "test")
    assert len(train) + len(test) == 243
    assert {about(members)["speaker"] for members in test.values()} == {"03"}
    counted = Counter(about(members)["emotion"] for members in {**train, **test}.values())
    assert len(counted) == 7
    assert counted["anger"] == max(counted.values())


def test_actors_speak_and_sing(tmp_path: Path) -> None:
    names = ["03-01-05-02-01-01-01", "03-02-03-01-02-02-02", "03-01-01-01-02-01-02", "03-01-08-02-02-01-24"]
    files = {f"Actor_{name[-2:]}/{name}.wav": b"x" for name in names}
    release = write_release(tmp_path / "in", {**files, "Actor_01/other.wav": b"x"})
    folder = Ravdess(from_file=release, val=0, out=tmp_path / "out").prepare()
    assert set(read_shards(folder, "test")) == {names[3]}
    train = read_shards(folder, "train")
    assert set(train) == {names[0], names[2]}
    assert about(train[names[0]]) == {
        "emotion": "angry", "intensity": "strong", "channel": "speech", "speaker": "01", "gender": "male",
        "text": "Kids are talking by the door", "utterance_id": names[0], "group": "01-01",
    }  # fmt: skip
    assert note(folder)["left_out"] == {"recordings with another name": 1}
    sung = Ravdess(from_file=release, val=0, song=True, out=tmp_path / "sung").prepare()
    assert set(read_shards(sung, "train")) == set(names[:3])
    songs = write_release(tmp_path / "songs", {f"{names[1]}.wav": b"x"})
    with pytest.raises(ValueError, match=r"has songs only: take them too \(--song true\)"):
        Ravdess(from_file=songs, out=tmp_path / "o").prepare()
    with pytest.raises(ValueError, match="lacks recordings named like 03-01-06"):
        Ravdess(from_file=write_release(tmp_path / "no", {"a.wav": b"x"}), out=tmp_path / "o").prepare()


def table(rows: list[list[Any]]) -> str:
    file = io.StringIO(newline="")
    csv.writer(file, quoting=csv.QUOTE_ALL).writerows(rows)
    return file.getvalue()


WIDTHS = {"text": 100, "audio": 73, "video": 100}


def opinions(**changes: Any) -> dict[str, Any]:
    """Three videos of two utterances to learn from, one to test on."""
    said = [[f"v{n // 2}_{n % 2}", f"SAID {n}", str(n // 2), str(n % 2)] for n in range(8)]
    files = {"data/transcripts.csv": table(said)}
    rng = np.random.default_rng(0)
    for part, lines in (("train", [2, 3, 4, 5, 6, 7]), ("test", [0, 1])):
        made = {name: (rng.random((len(lines), width)) * 9 + 4).round(4) for name, width in WIDTHS.items()}
        files[f"data/text_{part}.csv"] = table(
            [[n, *row] for n, row in zip(lines, made["text"], strict=True)]
        )
        for name, values in made.items():
            labelled = [[*row, n % 2] for n, row in zip(lines, values, strict=True)]
            files[f"data/{name}/{name}_{part}0.csv"] = table(labelled)
    return files | changes


def features(tmp_path: Path, files: dict[str, Any], **settings: Any) -> Path:
    release = write_release(tmp_path / "in", files)
    return Mosi(from_file=release, out=tmp_path / "out", **settings).prepare()


def test_features_lie_beside_what_was_said(tmp_path: Path) -> None:
    folder = features(tmp_path, opinions(), val=1)
    splits = [read_shards(folder, split) for split in ("train", "val", "test")]
    assert [len(split) for split in splits] == [4, 2, 2]
    videos = [{about(members)["video"] for members in split.values()} for split in splits]
    assert videos[2] == {"v0"}
    assert not videos[0] & videos[1]
    one = splits[2]["v0_1"]
    assert about(one) == {
        "label": "positive", "transcript": "SAID 1", "utterance_id": "v0_1", "video": "v0", "group": "v0",
    }  # fmt: skip
    for name, width in WIDTHS.items():
        trained = np.concatenate([np.load(io.BytesIO(s[f"{name}.npy"])) for s in splits[0].values()])
        assert trained.shape == (4, width)
        assert trained.dtype == np.float32
        np.testing.assert_allclose(trained.mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(trained.std(axis=0), 1, atol=1e-5)


BROKEN = {"transcripts.csv": "\0" * 200_000, "text_test.csv": '"0,' + "1," * 99_999}
"""Files of zeros, and with a quote that never ends."""


def test_blank_lines_at_the_end(tmp_path: Path) -> None:
    files = opinions()
    folder = features(tmp_path, {name: text + "\r\n\n" for name, text in files.items()}, val=1)
    plain = features(tmp_path / "plain", files, val=1)
    assert read_shards(folder, "test") == read_shards(plain, "test")


def test_tables_that_are_not_as_released(tmp_path: Path) -> None:
    files = opinions()
    rows = files["data/audio/audio_train0.csv"].splitlines()
    other = {
        r"audio_train0\.csv in .* has 5 rows, .*text_train\.csv has 6": "\r\n".join(rows[:5]),
        r"audio_train0\.csv, line 2, .* is not as released: a feature is not finite": "\r\n".join(
            [rows[0], '"nan",' + rows[1].partition(",")[2], *rows[2:]]
        ),
        r"audio_train0\.csv, line 1, .* 73 columns instead of 74": "\r\n".join(
            [rows[0].partition(",")[2], *rows[1:]]
        ),
        r"line 1, .*: the label is 7, in transcripts\.csv it is 0": "\r\n".join(
            [rows[0].rpartition(",")[0] + ',"7"', *rows[1:]]
        ),
    }
    for number, (said, content) in enumerate(other.items()):
        with pytest.raises(ValueError, match=said):
            features(tmp_path / str(number), files | {"data/audio/audio_train0.csv": content})
    lines = files["data/text_test.csv"].splitlines()
    for number, (place, said) in enumerate({"8": "'8'", "-1": "'-1'", "x": "'x'"}.items()):
        content = "\r\n".join([lines[0], f'"{place}",' + lines[1].partition(",")[2]])
        with pytest.raises(ValueError, match=rf"text_test\.csv, line 2, .*{said} is no line of .* 0 to 7"):
            features(tmp_path / f"outside{number}", files | {"data/text_test.csv": content})
    for number, (name, content) in enumerate(BROKEN.items()):
        with pytest.raises(ValueError, match=rf"{name} in .* is not as released: line \d+: "):
            features(tmp_path / f"broken{number}", files | {f"data/{name}": content})
    del files["data/video/video_test0.csv"]
    with pytest.raises(ValueError, match=r"lacks video/video_test0\.csv"):
        features(tmp_path / "less", files)


def test_the_released_mosi(public_data: Path, tmp_path: Path) -> None:
    release = public_data / "cmu-mosi-features"
    folder = Mosi(from_file=release, val=0, out=tmp_path / "out").prepare()
    train, test = read_shards(folder, "train"), read_shards(folder, "test")
    assert (len(train), len(test)) == (1447, 378)
    assert len({about(members)["video"] for members in train.values()}) == 62
    share = np.mean([about(members)["label"] == "positive" for members in test.values()])
    assert 0.5 < share < 0.75
