"""`mmlab data prepare`: settings of a data set on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from releases import note, picture, write_release

from mmlab import cli


def release(folder: Path) -> Path:
    """Two files of conversations, with a picture each."""
    for number, name in enumerate(("one", "two")):
        rows = [
            {"id": f"{name}{n}", "image": f"{name}.jpg", "conversations": [
                {"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "A cat."},
            ]}
            for n in range(number + 1)
        ]  # fmt: skip
        write_release(
            folder, {f"{name}.json": json.dumps(rows), f"{name}.jpg": picture(number, size=(40, 20))}
        )
    return folder


def prepare(*words: object) -> int:
    return cli.main(["data", "prepare", "conversations", *map(str, words)])


def test_settings_follow_as_keys_and_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--from", release(tmp_path / "in"), "--out", tmp_path / "out")
    assert prepare(*words) == cli.BAD_INPUT
    assert "say which one (--file NAME" in capsys.readouterr().err
    assert prepare(*words, "--file", "two.json", "--max_side", "16") == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out")
    found = note(tmp_path / "out")
    assert found["settings"] | {"file": "two.json", "max_side": 16} == found["settings"]
    assert found["splits"]["train"]["samples"] == 2


def test_a_pickle_file_is_refused_with_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_release(tmp_path, {"unaligned_50.pkl": b"x"}) / "unaligned_50.pkl"
    assert cli.main(["data", "prepare", "mosi", "--from", str(path)]) == cli.BAD_INPUT
    said = capsys.readouterr().err
    assert f"{path}: reading a pickle file can run any code, so mmlab does not" in said
    assert "docs/fusion.md" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--fil", "two.json"), "settings of conversations: --file, --val, --max_side"),
        (("--val", "many"), "settings of conversations: --file, --val, --max_side"),
    ],
)
def test_what_is_no_setting_shows_those_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    assert prepare("--from", release(tmp_path / "in"), "--out", tmp_path / "out", *words) == cli.BAD_INPUT
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
