"""NLVR and NLVR2: lines of JSON and pictures -> statements."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from releases import about, note, picture, read_shards, write_release

from mmlab.sources.nlvr import Nlvr
from mmlab.sources.nlvr2 import Nlvr2

BOXES = [
    [
        {"y_loc": 80, "type": "square", "color": "Yellow", "x_loc": 40, "size": 20},
        {"y_loc": 2, "type": "circle", "color": "#0099ff", "x_loc": 7, "size": 10},
    ],
    [],
    [{"y_loc": 60, "type": "triangle", "color": "Black", "x_loc": 1, "size": 30}],
]
FIRST = "box 1: small blue circle at x 7 y 2, medium yellow square at x 40 y 80"


def statement(identifier: str, sentence: str, label: str = "true", boxes: Any = BOXES) -> str:
    row = {"sentence": sentence, "label": label, "identifier": identifier, "directory": "0"}
    return json.dumps({**row, "evals": {"r0": label}, "structured_rep": boxes}) + "\n"


def release(drawings: int = 2) -> dict[str, Any]:
    """Test: eight sentences, of which two are alike, with two scenes each; dev: two with one."""
    rows = {
        "test": [(f"{n}-{scene}", f"Tower {min(n, 6)} is high.") for n in range(8) for scene in range(2)],
        "dev": [("70-0", "There is a box."), ("71-3", "No box. ")],
    }
    files: dict[str, Any] = {}
    for split, said in rows.items():
        files[f"nlvr/{split}/{split}.json"] = "".join(statement(*row) for row in said)
        for place, (identifier, _) in enumerate(said):
            for k in range(drawings):
                name = f"nlvr/{split}/images/{place % 3}/{split}-{identifier}-{k}.png"
                files[name] = picture(10 * place + k, kind="PNG")
    return files


def test_samples(tmp_path: Path) -> None:
    folder = Nlvr(val=3, from_file=write_release(tmp_path / "in", release()), out=tmp_path / "out").prepare()
    train, val, test = (read_shards(folder, split) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (20, 12, 4)
    assert test["dev-71-3-1"]["png"] == picture(11, kind="PNG")
    assert about(test["dev-71-3-1"]) == {
        "statement": "No box.", "answer": "true",
        "scene": f"{FIRST}; box 2: large black triangle at x 1 y 60; box 3: empty",
        "identifier": "dev-71-3-1", "group": "dev-71-3", "sentence_id": "dev-71",
    }  # fmt: skip
    scene = about(test["dev-71-3-0"])["scene"]
    assert scene == f"{FIRST}; box 2: empty; box 3: large black triangle at x 1 y 60"
    words = [{about(members)["statement"] for members in samples.values()} for samples in (train, val)]
    assert not words[0] & words[1], "statements 6 and 7 say the same"
    assert len({about(members)["sentence_id"] for members in val.values()}) == 3
    assert "nlvr/test/test.json" in note(folder)["release"]


def test_the_training_split_is_taken_where_it_is_there(tmp_path: Path) -> None:
    files = {name.replace("test", "train"): content for name, content in release().items()}
    path = write_release(tmp_path / "in", files | release())
    folder = Nlvr(val=0, from_file=path, out=tmp_path / "out").prepare()
    assert {key.partition("-")[0] for key in read_shards(folder, "train")} == {"train"}
    folder = Nlvr(train="test", val=0, from_file=path, out=tmp_path / "test").prepare()
    assert {key.partition("-")[0] for key in read_shards(folder, "train")} == {"test"}


def test_no_split_is_trained_and_tested_on(tmp_path: Path) -> None:
    path = write_release(tmp_path / "in", release())
    folder = Nlvr(test="test", val=0, from_file=path, out=tmp_path / "out").prepare()
    homes = {
        split: {key.partition("-")[0] for key in read_shards(folder, split)} for split in ("train", "test")
    }
    assert homes == {"train": {"dev"}, "test": {"test"}}


def test_what_is_prepared_needs_its_release_no_longer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_release(tmp_path / "in", release())
    folder = Nlvr(val=3, from_file=path, out=tmp_path / "out").prepare()
    path.rename(tmp_path / "elsewhere")
    assert Nlvr(val=3, from_file=path, out=tmp_path / "out").prepare() == folder
    assert f"{path} is not there: taking {folder}, prepared before" in capsys.readouterr().err
    with pytest.raises(ValueError, match="there is no file or folder"):
        Nlvr(val=3, from_file=path, out=tmp_path / "other").prepare()


def test_pictures_that_were_mended_are_read_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMLAB_CACHE", str(tmp_path / "cache"))
    path = write_release(tmp_path / "in", release())
    (picture_of,) = path.glob("nlvr/dev/images/*/dev-71-3-1.png")
    whole = picture_of.read_bytes()
    picture_of.write_bytes(b"")
    folder = Nlvr(val=3, from_file=path).prepare()
    assert note(folder)["splits"]["test"]["left_out"] == {"file broken": 1}
    picture_of.write_bytes(whole)
    assert len(read_shards(Nlvr(val=3, from_file=path).prepare(), "test")) == 4


def test_at_most_so_many_drawings(tmp_path: Path) -> None:
    path = write_release(tmp_path / "in", release(drawings=6))
    for drawings in (1, 6):
        folder = Nlvr(drawings=drawings, val=0, from_file=path, out=tmp_path / str(drawings)).prepare()
        assert len(read_shards(folder, "train")) == 16 * drawings


def test_a_statement_without_drawings_is_counted(tmp_path: Path) -> None:
    files = release()
    for k in range(2):
        del files[f"nlvr/dev/images/1/dev-71-3-{k}.png"]
    folder = Nlvr(val=3, from_file=write_release(tmp_path / "in", files), out=tmp_path / "out").prepare()
    assert note(folder)["splits"]["test"] == {"samples": 2, "media": 2, "left_out": {"file missing": 1}}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (statement("70-0", "x", "maybe"), "label 'maybe' is neither true nor false"),
        (statement("70-0", "x", boxes=BOXES[:2]), "2 boxes instead of 3"),
        ('{"sentence": "x"}', "no field 'label'"),
        ("[1, 2", "Expecting"),
    ],
)
def test_wrong_lines(tmp_path: Path, line: str, message: str) -> None:
    files = release()
    files["nlvr/dev/dev.json"] += line
    with pytest.raises(ValueError, match=rf"nlvr/dev/dev\.json, line 3, in .*{message}"):
        Nlvr(val=3, from_file=write_release(tmp_path / "in", files), out=tmp_path / "out").prepare()


def test_settings_that_cannot_be(tmp_path: Path) -> None:
    path = write_release(tmp_path / "in", release())
    with pytest.raises(ValueError, match=r"lacks train/train\.json; it holds nlvr/"):
        Nlvr(train="train", from_file=path, out=tmp_path / "out").prepare()
    with pytest.raises(ValueError, match="train and test are both the released dev"):
        Nlvr(train="dev")
    with pytest.raises(ValueError, match="drawings is 7: a scene has from 1 to 6"):
        Nlvr(drawings=7)
    with pytest.raises(ValueError, match="val is 8: it takes from 0 to 7 of 8 statements"):
        Nlvr(val=8, from_file=path, out=tmp_path / "out").prepare()
    with pytest.raises(ValueError, match="nlvr is not prepared yet, and mmlab does not fetch it"):
        Nlvr(val=5, out=tmp_path / "out").prepare()


COLOURS = {"yellow": (255, 255, 0), "black": (0, 0, 0), "blue": (0, 153, 255)}


def shows(pixels: np.ndarray, scene: str) -> bool:
    """Whether each thing's colour is in the middle of its place, and no other colour in its box."""
    for place, box in enumerate(scene.split("; ")):
        things = [] if box.endswith("empty") else box.partition(": ")[2].split(", ")
        part = pixels[:, 150 * place : 150 * place + 100].astype(int)
        seen = {name for name, colour in COLOURS.items() if (np.abs(part - colour).sum(-1) < 40).sum() > 20}
        if seen != {thing.split()[1] for thing in things}:
            return False
        for thing in things:
            size, colour, _, _, _, x, _, y = thing.split()
            half = {"small": 5, "medium": 10, "large": 15}[size]
            row, column = min(99, int(y) + half), min(99, int(x) + half)
            if np.abs(part[row, column] - COLOURS[colour]).sum() > 60:
                return False
    return True


def test_the_released_drawings_show_their_scenes(public_data: Path, tmp_path: Path) -> None:
    folder = Nlvr(from_file=public_data / "nlvr" / "nlvr.tar.gz", out=tmp_path / "nlvr").prepare()
    splits = note(folder)["splits"]
    train, val, test = (read_shards(folder, split) for split in ("train", "val", "test"))
    assert not any(split["left_out"] for split in splits.values())
    assert (len(train) + len(val), len(test)) == (2 * 990, 2 * 989)
    assert len({about(members)["sentence_id"] for members in val.values()}) == 25
    assert Counter(about(members)["answer"] for members in test.values()) == {"true": 1094, "false": 884}
    for key, members in list(test.items())[:300]:
        with Image.open(io.BytesIO(members["png"])) as image:
            assert shows(np.asarray(image.convert("RGB")), about(members)["scene"]), key


def pair(identifier: str, sentence: str, label: str) -> str:
    return json.dumps({"sentence": sentence, "label": label, "identifier": identifier, "writer": 6}) + "\n"


def test_pairs_of_photographs(tmp_path: Path) -> None:
    files: dict[str, Any] = {
        "nlvr2/data/train.json": pair("train-10171-0-0", "Two dogs.", "False"),
        "nlvr2/data/dev.json": pair("dev-850-0-0", "A cat. ", "True")
        + pair("dev-850-2-0", "A cat.", "False"),
        "nlvr2/data/test1.json": pair("test1-0-1-0", "A hat.", "True"),
        "nlvr/dev/dev.json": "not this one",
        "images/train/62/train-10171-0-img0.png": picture(1, size=(900, 300)),  # a JPEG, as some are
        "images/train/62/train-10171-0-img1.png": picture(2, kind="PNG"),
    }
    for number, name in enumerate(("dev/dev-850-0", "dev/dev-850-2", "test1/test1-0-1")):
        for side in range(2):
            files[f"images/{name}-img{side}.png"] = picture(20 * number + side, kind="PNG")
    del files["images/dev/dev-850-2-img1.png"]
    folder = Nlvr2(from_file=write_release(tmp_path / "in", files), out=tmp_path / "out").prepare()
    train, val, test = (read_shards(folder, split) for split in ("train", "val", "test"))
    assert set(train["train-10171-0-0"]) == {"0.jpg", "1.png", "json"}
    with Image.open(io.BytesIO(train["train-10171-0-0"]["0.jpg"])) as image:
        assert image.size == (512, 171)
    assert val["dev-850-0-0"]["1.png"] == picture(1, kind="PNG")
    assert about(val["dev-850-0-0"]) == {
        "statement": "A cat.", "answer": "true", "identifier": "dev-850-0-0", "group": "dev-850-0",
    }  # fmt: skip
    assert len(val) == len(test) == 1
    assert note(folder)["splits"]["val"]["left_out"] == {"file missing": 1}
    files["nlvr2/data/dev.json"] = pair("dev-850", "x", "True")
    with pytest.raises(ValueError, match=r"nlvr2/data/dev\.json, line 1, in .* is not as released"):
        Nlvr2(from_file=write_release(tmp_path / "in", files), out=tmp_path / "more").prepare()
