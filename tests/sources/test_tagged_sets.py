"""Files of words and tags: tiny ones as they are released, and the real ones."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from releases import about, note, picture, read_shards, write_release

from mmlab.sources.conll2003 import Conll2003, to_bio
from mmlab.sources.twitter_entities import TwitterEntities
from mmlab.sources.wnut17 import Wnut17

POSTS = "Empire\tB-location\nState\tI-location\n=\tO\n\t\nBob\tB-person\n\n"
WNUT = {
    "wnut17train.conll": POSTS,
    "emerging.dev.conll": POSTS,
    "emerging.test.annotated": "\n" + POSTS + "\n\n",
}


def wnut(tmp_path: Path, files: dict[str, Any]) -> Path:
    return Wnut17(from_file=write_release(tmp_path / "in", files), out=tmp_path / "out").prepare()


def test_a_post_is_words_and_tags(tmp_path: Path) -> None:
    folder = wnut(tmp_path, WNUT)
    for split in ("train", "val", "test"):
        samples = read_shards(folder, split)
        assert set(samples) == {f"{split}-1", f"{split}-2"}
        assert about(samples[f"{split}-1"]) == {
            "words": ["Empire", "State", "="], "tags": ["B-location", "I-location", "O"],
            "group": f"{split}-1",
        }  # fmt: skip
        assert about(samples[f"{split}-2"])["words"] == ["Bob"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a\tO\nb\n", r"wnut17train\.conll, line 2, .*: 1 columns instead of 2"),
        ("a\tO\n\nb\tB-thing\n", r"line 3, .*: 'B-thing' is none of its tags"),
        ("a\tO\n\tO\n", r"wnut17train\.conll, line 2, .*: no word before its tag"),
        ("a\tO\tO\n", "line 1, .*: 3 columns instead of 2"),
    ],
)
def test_lines_that_are_not_as_released(tmp_path: Path, content: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        wnut(tmp_path, WNUT | {"wnut17train.conll": content})


def test_a_release_that_lacks_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lacks emerging\.test\.annotated"):
        wnut(tmp_path, {name: text for name, text in WNUT.items() if "test" not in name})


def test_the_released_wnut17(public_data: Path, tmp_path: Path) -> None:
    folder = Wnut17(from_file=public_data / "wnut17", out=tmp_path / "out").prepare()
    counts = {split: found["samples"] for split, found in note(folder)["splits"].items()}
    assert counts == {"train": 3394, "val": 1009, "test": 1287}
    tags = Counter(tag for s in read_shards(folder, "test").values() for tag in about(s)["tags"])
    assert sum(number for tag, number in tags.items() if tag.startswith("B-")) == 1079


NEWS = (
    "-DOCSTART- -X- -X- O\n\nEU NNP I-NP I-ORG\nrejects VBZ I-VP O\n\nBonn NNP I-NP I-LOC\n\n"
    "-DOCSTART- -X- O O\n\nPeter NNP I-NP I-PER\n"
)


def test_news_come_in_documents(tmp_path: Path) -> None:
    release = write_release(tmp_path / "in", dict.fromkeys(("eng.train", "eng.testa", "eng.testb"), NEWS))
    train = read_shards(Conll2003(from_file=release, out=tmp_path / "out").prepare(), "train")
    assert [about(train[f"train-{n}"])["words"] for n in (1, 2, 3)] == [
        ["EU", "rejects"],
        ["Bonn"],
        ["Peter"],
    ]
    assert [about(train[f"train-{n}"])["tags"] for n in (1, 2, 3)] == [["B-ORG", "O"], ["B-LOC"], ["B-PER"]]
    groups = [about(train[f"train-{n}"])["group"] for n in (1, 2, 3)]
    assert groups[0] == groups[1] != groups[2]


def test_one_way_of_tagging_becomes_the_other() -> None:
    old = ["I-LOC", "B-LOC", "I-LOC", "O", "I-PER", "I-LOC", "I-LOC"]
    new = ["B-LOC", "B-LOC", "I-LOC", "O", "B-PER", "B-LOC", "I-LOC"]
    assert to_bio(old) == new
    assert to_bio(new) == new


TWEETS = "IMGID:7\nRT\tO\n@Ann\tB-PER\n\nIMGID:8\nUlm\tB-LOC\n\nIMGID:9\nUlm\tB-LOC\n"


def test_posts_stand_beside_their_pictures(tmp_path: Path) -> None:
    files = dict.fromkeys(("train.txt", "valid.txt", "test.txt"), TWEETS)
    pictures = {f"images/{n}.jpg": picture(n) for n in (7, 8)}
    release = write_release(tmp_path / "in", {**files, **pictures})
    folder = TwitterEntities(from_file=release, out=tmp_path / "out").prepare()
    samples = read_shards(folder, "test")
    assert set(samples) == {"test-1", "test-2", "test-3"}
    assert set(samples["test-3"]) == {"json"}, "its picture is missing"
    assert samples["test-1"]["jpg"] == pictures["images/7.jpg"]
    assert about(samples["test-1"])["tags"] == ["O", "B-PER"]
    assert about(samples["test-1"])["group"] == "7"
    assert note(folder)["splits"]["test"] == {"samples": 3, "media": 2, "left_out": {}}
    dense = {name: text.replace("\n\n", "\n") for name, text in files.items()}
    release = write_release(tmp_path / "dense", {**dense, **pictures})
    again = TwitterEntities(from_file=release, out=tmp_path / "again").prepare()
    assert about(read_shards(again, "test")["test-2"])["words"] == ["Ulm"]  # a heading ends a post too
    both = {f"{year}/{name}": text for year in (2015, 2017) for name, text in files.items()}
    with pytest.raises(ValueError, match=r"holds several train\.txt\. The release is that of UMT"):
        TwitterEntities(from_file=write_release(tmp_path / "both", both), out=tmp_path / "o").prepare()


def test_there_are_two_years() -> None:
    with pytest.raises(ValueError, match="year is 2016: it is 2015 or 2017"):
        TwitterEntities(year=2016)
