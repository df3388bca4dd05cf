"""Items on their way into shards: keys, order, what is left out."""

from __future__ import annotations

from pathlib import Path

from releases import picture, read_shards, write_release

from mmlab.data.shards import ShardSet
from mmlab.sources.files import open_release
from mmlab.sources.items import Item, write_items


def test_keys_that_tars_cannot_hold(tmp_path: Path) -> None:
    keys = ["图", "片", "a.b", "a/b", "a b", "a-b", "a.b"]
    items = [Item(key, {"n": n}) for n, key in enumerate(keys)]
    with open_release(write_release(tmp_path / "in", {"x": ""})) as files:
        written = write_items(items, files, tmp_path / "out", split="train", max_side=None)
    assert written.left_out == {"identifier repeated": 1}
    assert written.counts == {"samples": 6, "media": 0}
    found = read_shards(tmp_path / "out", "train")
    assert {members["json"] for members in found.values()} >= {b'{"n": %d}' % n for n in (0, 1, 3, 4, 5)}
    assert {"_", "a_b", "a-b"} < set(found)


def test_half_a_surrogate_pair_becomes_a_question_mark(tmp_path: Path) -> None:
    items = [Item("half \ud83d", {"text": "half \ud83d"})]
    with open_release(write_release(tmp_path / "in", {"x": ""})) as files:
        write_items(items, files, tmp_path / "out", split="train", max_side=None)
    (members,) = read_shards(tmp_path / "out", "train").values()
    assert members["json"] == b'{"text": "half ?"}'


def test_the_same_items_give_the_same_shards_in_no_order(tmp_path: Path) -> None:
    files = {f"{n}.jpg": picture(n) for n in range(40)}
    items = [Item(f"{n}-{k}", {"n": n}, (f"{n}.jpg",)) for n in range(40) for k in range(3)]
    with open_release(write_release(tmp_path / "in", files)) as release:
        for name, order in (("one", items), ("two", items[::-1])):
            write_items(order, release, tmp_path / name, split="val", max_side=512)
    shard = "val-000000.tar"
    assert (tmp_path / "one" / shard).read_bytes() == (tmp_path / "two" / shard).read_bytes()
    shards = ShardSet.find("val-*.tar", folder=tmp_path / "one")
    pictures = [shards.read(0, n).key.partition("-")[0] for n in range(len(items))]
    assert all(len(set(pictures[start : start + 3])) == 1 for start in range(0, len(items), 3))
    assert pictures[::3] != sorted(pictures[::3], key=int)


def test_an_item_lacks_what_one_of_its_pictures_lacks(tmp_path: Path) -> None:
    files = {"1.jpg": picture(1), "2.jpg": picture(2)[:50], "s.ogg": b"sound", "t.tiff": b"II*\0"}
    wanted = {"whole": ("1.jpg", "s.ogg"), "broken": ("1.jpg", "2.jpg"), "missing": ("3.jpg", "1.jpg")}
    items = [Item(key, {}, media) for key, media in {**wanted, "format": ("t.tiff",)}.items()]
    with open_release(write_release(tmp_path / "in", files)) as release:
        written = write_items(items, release, tmp_path / "out", split="test", max_side=512)
    assert written.left_out == {"file broken": 2, "file missing": 1}
    members = read_shards(tmp_path / "out", "test")["whole"]
    assert members == {"0.jpg": picture(1), "1.ogg": b"sound", "json": b"{}"}


def test_broken_pictures_of_samples_that_need_none_are_counted(tmp_path: Path) -> None:
    files = {"1.jpg": picture(1), "2.jpg": picture(2)[:50]}
    items = [Item(f"k{n}", {}, (f"{n}.jpg",), needs_media=False) for n in (1, 2, 3)]
    with open_release(write_release(tmp_path / "in", files)) as release:
        written = write_items(items, release, tmp_path / "out", split="test", max_side=512)
    assert (written.counts["samples"], written.left_out, written.broken) == (3, {}, 1)
