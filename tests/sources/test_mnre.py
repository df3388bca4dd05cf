"""MNRE: lines as they are released, pictures that are there or not, and lines that are hostile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from releases import about, note, picture, read_shards, write_release

from mmlab.sources.catalog import source_class
from mmlab.sources.mnre import Mnre


def pair(number: int, **changes: Any) -> dict[str, Any]:
    """What a line holds."""
    return {
        "token": ["RT", "@ann", ":", "Bob", "Ray", "isn't", "in", "Ulm"],
        "h": {"name": "Bob Ray", "pos": [3, 5]}, "t": {"name": "Ulm", "pos": [7, 8]},
        "img_id": f"twitter_{number}.jpg", "relation": "/per/loc/place_of_residence", **changes,
    }  # fmt: skip


def lines(*pairs: dict[str, Any]) -> str:
    """As released: each as Python writes it."""
    return "".join(f"{one!r}\n" for one in pairs)


def release(train: str, **files: Any) -> dict[str, Any]:
    others = {f"txt/ours_{part}.txt": lines(pair(n)) for n, part in ((50, "val"), (60, "test"))}
    return {"txt/ours_train.txt": train, **others, **files}


def prepared(tmp_path: Path, files: dict[str, Any], **settings: Any) -> Path:
    return Mnre(**settings, from_file=write_release(tmp_path / "in", files), out=tmp_path / "out").prepare()


def test_a_pair_of_entities_is_a_sample(tmp_path: Path) -> None:
    pictures = {f"img_org/train/twitter_{n}.jpg": picture(n) for n in (0, 1)}
    other = {"img_org/val/twitter_0.jpg": picture(9), "img_vg/train/crops/twitter_1.jpg": picture(8)}
    train = lines(pair(0), pair(0, relation="None"), pair(1, h={"name": "Ulm", "pos": [7, 8]}))
    folder = prepared(tmp_path, release(train, **pictures, **other))
    samples = read_shards(folder, "train")
    assert set(samples) == {"train-1", "train-2", "train-3"}
    assert about(samples["train-1"]) == {
        "words": pair(0)["token"], "head": [3, 5], "tail": [7, 8], "relation": "/per/loc/place_of_residence",
        "image_id": "twitter_0.jpg", "group": "twitter_0.jpg",
    }  # fmt: skip
    assert samples["train-1"]["jpg"] == samples["train-2"]["jpg"] == picture(0)
    assert samples["train-3"]["jpg"] == picture(1), "the one of the split, not a part of it"
    assert about(samples["train-3"])["head"] == about(samples["train-3"])["tail"] == [7, 8]


def test_a_missing_or_broken_picture_loses_no_sample(tmp_path: Path) -> None:
    pictures = {"twitter_1.jpg": picture(1), "twitter_2.jpg": picture(2)[:300]}
    folder = prepared(tmp_path, release(lines(pair(0), pair(1), pair(2)), **pictures))
    samples = read_shards(folder, "train")
    assert [set(samples[f"train-{n}"]) for n in (1, 2, 3)] == [{"json"}, {"json", "jpg"}, {"json"}]
    assert note(folder)["splits"]["train"] == {"samples": 3, "media": 1, "left_out": {}, "broken": 1}
    assert note(folder)["splits"]["test"]["samples"] == 1


def test_it_is_found_under_the_names_it_was_released_by(tmp_path: Path) -> None:
    named = {f"mnre_txt/mnre_{part}.txt": lines(pair(n)) for n, part in enumerate(("train", "val ", "test"))}
    assert set(read_shards(prepared(tmp_path, named), "val")) == {"val-1"}
    first = {f"mnre_txt/mnre_org_{part}.txt": lines(pair(0)) for part in ("train", "val", "test")}
    with pytest.raises(ValueError, match=r"it lacks ours_train\.txt or mnre_train\.txt, .*\n.*version 2"):
        prepared(tmp_path / "first", first)
    assert source_class("mnre") is Mnre


def test_json_says_the_same(tmp_path: Path) -> None:
    smile = pair(1, token=["a", "\U0001f642", "Bob", "Ray", "x", "y", "z", "Ulm"])
    train = lines(pair(0), smile) + json.dumps(smile) + "\n"
    samples = read_shards(prepared(tmp_path, release(train)), "train")
    assert about(samples["train-3"])["words"] == about(samples["train-2"])["words"] == smile["token"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("__import__('os').system('true')", "malformed node"),
        ("{'token': [i for i in range(9)]}", "malformed node"),
        ("[" * 5000, "no object"),
        ("-" * 60_000 + "1", r"no object|recursion|malformed"),
        ("{'token': ['a'], ", "no object"),
        ("{'token': '" + "x" * 70_000 + "'}", "letters, more than the 65536 allowed"),
        (repr(pair(0, relation="/per/per/colleague")), "'/per/per/colleague' is none of the 23 relations"),
        (repr(pair(0, token=[])), "`token` is words"),
        (repr(pair(0, token=["a", 1])), "`token` is words"),
        (repr({key: value for key, value in pair(0).items() if key != "h"}), "no field 'h'"),
        (repr(pair(0, h={"pos": ["a", 1]})), "`pos` is places of words"),
        (repr(pair(0, token="Bob")), "`token` is words"),
        (repr(pair(0, relation=["None"])), "unhashable"),
        ("17", "not subscriptable"),
        ('{"token": [', "Expecting value"),
    ],
    ids=lambda value: value[:20],
)
def test_a_line_that_is_not_as_released_is_named(tmp_path: Path, line: str, said: str) -> None:
    place = r"txt/ours_train\.txt, line 2, in .* is not as released: "
    with pytest.raises(ValueError, match=rf"{place}.*({said})"):
        prepared(tmp_path, release(f"{pair(0)!r}\n{line}\n"))


def test_entities_beside_their_words_are_counted(tmp_path: Path) -> None:
    fine = [pair(n) for n in range(300)]
    for number, place in enumerate(([8, 9], [3, 3], [-1, 2], [1, 2, 3])):
        train = lines(*fine, pair(1, t={"name": "x", "pos": place}), pair(301))
        folder = prepared(tmp_path / str(number), release(train))
        assert note(folder)["left_out"] == {"have an entity that is not among their words": 1}
        assert about(read_shards(folder, "train")["train-301"])["image_id"] == "twitter_301.jpg"
    many = release(lines(pair(0)) + "\n" + lines(pair(1, h={"pos": [5, 9]})))
    first = r"\(the first: txt/ours_train\.txt, line 3\)\.\n"
    with pytest.raises(ValueError, match=rf"of 4 lines, 1 have .* not among their words {first}"):
        prepared(tmp_path / "many", many)
