"""Shards: index, reading, writing, finding, checking; webdataset itself is the reference."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest
from tars import contents, with_webdataset, write_tar

from mmlab.data.check import check_shards
from mmlab.data.shards import ShardSet, find_shards, write_shards


def samples(count: int, size: int = 10) -> list[dict[str, object]]:
    return [
        {"__key__": f"{n:06d}", "txt": f"caption {n}", "json": {"n": n}, "bin": bytes([n % 251]) * size}
        for n in range(count)
    ]


def test_write_and_read(tmp_path: Path) -> None:
    paths = write_shards(samples(25), tmp_path, "train", max_samples=10)
    assert [path.name for path in paths] == [f"train-{n:06d}.tar" for n in range(3)]
    shards = ShardSet(paths)
    assert shards.counts.tolist() == [10, 10, 5]
    assert shards.extensions == {"bin": 25, "json": 25, "txt": 25}
    read = contents(shards)
    assert [key for key, _ in read] == [f"{number:06d}" for number in range(25)]
    assert read[13][1] == {"txt": b"caption 13", "json": b'{"n": 13}', "bin": bytes([13]) * 10}
    assert read[:10] == with_webdataset(paths[0])
    assert [shards.key(1, n) for n in range(10)] == [key for key, _ in read[10:20]]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        name for path in paths for name in (path.name, path.name + ".idx")
    )


def test_equal_samples_give_equal_bytes(tmp_path: Path) -> None:
    first = write_shards(samples(5), tmp_path / "a", "x")[0].read_bytes()
    assert first == write_shards(samples(5), tmp_path / "b", "x")[0].read_bytes()
    assert ShardSet.find(str(tmp_path / "a/*.tar")).digest == ShardSet.find(str(tmp_path / "b/*.tar")).digest


def test_shards_are_closed_by_size(tmp_path: Path) -> None:
    paths = write_shards(samples(6, size=30_000), tmp_path, "x", max_bytes=60_000)
    assert len(paths) > 1
    assert ShardSet(paths).counts.sum() == 6


def test_a_failed_write_leaves_the_old_shards(tmp_path: Path) -> None:
    write_shards(samples(3), tmp_path, "x")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def broken() -> Iterable[Mapping[str, object]]:
        yield from samples(2)
        raise RuntimeError("source failed")

    with pytest.raises(RuntimeError, match="source failed"):
        write_shards(broken(), tmp_path, "x")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_smaller_set_replaces_a_larger_one_of_its_prefix_only(tmp_path: Path) -> None:
    write_shards(samples(4), tmp_path, "x", max_samples=1)
    write_shards(samples(2), tmp_path, "x-y", max_samples=1)
    write_shards(samples(2), tmp_path, "x", max_samples=1)
    assert len(list(tmp_path.glob("x-0*.tar"))) == 2
    assert len(list(tmp_path.glob("x-y-0*.tar"))) == 2


@pytest.mark.parametrize("key", ["", "a.b", "/.b", "a/.b", "a/__b"])
def test_keys_that_would_not_read_back_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="name without a dot"):
        write_shards([{"__key__": key, "txt": "x"}], tmp_path, "x")
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_write_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no samples"):
        write_shards([], tmp_path, "x")


class TestShardSet:
    def test_pickles_without_its_files(self, tmp_path: Path) -> None:
        shards = ShardSet(write_shards(samples(25), tmp_path, "x", max_samples=10))
        read = contents(shards)
        copy = pickle.loads(pickle.dumps(shards))
        assert contents(copy) == read
        assert len(pickle.dumps(copy)) == len(pickle.dumps(ShardSet(shards.paths)))

    def test_open_files_are_bounded_and_closed(self, tmp_path: Path) -> None:
        def open_files() -> int:
            return len(os.listdir("/proc/self/fd"))

        before = open_files()
        shards = ShardSet(write_shards(samples(150), tmp_path, "x", max_samples=1))
        assert len(contents(shards)) == 150
        assert open_files() - before <= 2 * 128
        assert contents(shards)[0][0] == "000000"  # opened again
        del shards
        assert open_files() == before

    def test_digest_depends_on_order_and_contents(self, tmp_path: Path) -> None:
        paths = write_shards(samples(4), tmp_path, "x", max_samples=2)
        digest = ShardSet(paths).digest
        assert ShardSet(paths[::-1]).digest != digest
        assert ShardSet(paths[:1]).digest != digest
        write_shards(samples(5), tmp_path, "x", max_samples=2)
        assert ShardSet(paths).digest == digest


class TestFind:
    @pytest.fixture(autouse=True)
    def _files(self, tmp_path: Path) -> None:
        for name in ("b-000010", "b-000009", "b-000011", "a-0", "c[1]"):
            (tmp_path / f"{name}.tar").touch()

    @pytest.mark.parametrize(
        ("patterns", "found"),
        [
            ("a-0.tar", ["a-0"]),
            ("*.tar", ["a-0", "b-000009", "b-000010", "b-000011", "c[1]"]),
            ("b-{000009..000011}.tar", ["b-000009", "b-000010", "b-000011"]),
            ("{a-0,b-0000{09..10}}.tar", ["a-0", "b-000009", "b-000010"]),
            (["b-*.tar", "a-*.tar", "b-000010.tar"], ["a-0", "b-000009", "b-000010", "b-000011"]),
            ("c[1].tar", ["c[1]"]),
        ],
    )
    def test_patterns(self, tmp_path: Path, patterns: str | list[str], found: list[str]) -> None:
        assert [path.stem for path in find_shards(patterns, folder=tmp_path)] == found

    @pytest.mark.parametrize(
        ("patterns", "named"),
        [("d-*.tar", "d-*.tar"), ("b-{000011..000012}.tar", "b-000012.tar"), ([], "no pattern")],
    )
    def test_nothing_found_says_what_was_looked_for(
        self, tmp_path: Path, patterns: str | list[str], named: str
    ) -> None:
        with pytest.raises(ValueError, match="no shards") as raised:
            find_shards(patterns, folder=tmp_path)
        assert named in str(raised.value)


def test_check_reports_what_is_wrong(tmp_path: Path) -> None:
    from PIL import Image

    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "JPEG")
    good = write_tar(
        tmp_path / "a.tar", [("1.jpg", picture.getvalue()), ("1.txt", b"one"), ("2.txt", b"two")]
    )
    files = [("1.jpg", b"no picture"), ("1.fr.ogg", b"no sound"), ("1.txt", b"\xff"), ("1.json", b"{"),
             ("2.jpg", picture.getvalue()[:-30]), ("1.jpg", picture.getvalue())]  # fmt: skip
    bad = write_tar(tmp_path / "b.tar", files)
    (tmp_path / "c.tar").write_bytes(b"no tar")
    first, second, third = check_shards([good, bad, tmp_path / "c.tar"])
    assert first.fine
    assert first.lacking == {"fr.ogg": 2, "jpg": 1, "json": 2}
    assert (first.samples, first.bytes) == (2, good.stat().st_size)
    assert not second.fine
    assert second.duplicates == 1
    assert second.broken == {
        "fr.ogg: cannot decode": 1, "jpg: cannot decode": 2, "json: invalid JSON": 1, "txt: invalid UTF-8": 1,
    }  # fmt: skip
    assert third.damage is not None
    assert "no plain tar" in third.damage


def test_reading_is_by_index_not_by_scanning(tmp_path: Path) -> None:
    path = write_shards(samples(1000), tmp_path, "x")[0]
    shards = ShardSet([path])
    rng = np.random.default_rng(0)
    for sample in rng.integers(0, 1000, 50):
        assert shards.read(0, int(sample)).members["txt"] == f"caption {sample}".encode()
