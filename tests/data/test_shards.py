"""Shards: index, reading, writing, finding, checking; webdataset itself is the reference."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import tarfile
import tracemalloc
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmlab.data.check import check_shards
from mmlab.data.decode import BrokenMember
from mmlab.data.index import build_index, open_index, split_name
from mmlab.data.shards import ShardSet, find_shards, write_shards


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """A tar of named members, in the order given."""
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def contents(shards: ShardSet) -> list[tuple[str, dict[str, bytes]]]:
    return [
        tuple(shards.read(shard, sample))
        for shard, count in enumerate(shards.counts)
        for sample in range(count)
    ]


def with_webdataset(path: Path) -> list[tuple[str, dict[str, bytes]]]:
    """The samples of a tar as webdataset reads them."""
    from webdataset.tariterators import group_by_keys, tar_file_iterator

    with path.open("rb") as stream:
        # webdataset 1.0 ends a shard with a record without a name, which its own grouping reads as {}.
        files = [f | {"__url__": ""} if "fname" in f else {} for f in tar_file_iterator(stream)]
    return [
        (s["__key__"], {k: v for k, v in s.items() if not k.startswith("__")}) for s in group_by_keys(files)
    ]


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


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("a./_\n"), max_size=8))
def test_names_split_as_webdataset_splits_them(name: str) -> None:
    from webdataset.tariterators import base_plus_ext

    ours, (key, extension) = split_name(name), base_plus_ext(name)
    if name.rpartition("/")[2].startswith("__") or "\n" in name:
        return
    assert ours == (None if key is None else (key, extension.lower()))


member_names = st.tuples(st.sampled_from(["a", "b", "d/c", "d.e/c", "..//a", "/a", ".h"]),
                         st.sampled_from(["", ".jpg", ".JPG", ".txt", ".en.txt"]))  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(
    names=st.lists(member_names, max_size=12),
    format=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
def test_grouping_is_that_of_webdataset(
    tmp_path_factory: pytest.TempPathFactory, names: list[tuple[str, str]], format: int
) -> None:
    files = [(stem + ending, f"{number}{stem}".encode()) for number, (stem, ending) in enumerate(names)]
    path = write_tar(tmp_path_factory.mktemp("tars") / "x.tar", files)
    ours = contents(ShardSet([path]))
    try:
        theirs = with_webdataset(path)
    except ValueError:
        # Where an extension comes twice, webdataset gives up; the second one begins a sample here.
        assert open_index(path).info.duplicates > 0
    else:
        assert ours == theirs


def test_odd_members_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind in [("d", tarfile.DIRTYPE), ("a.jpg", tarfile.SYMTYPE), ("a.txt", tarfile.LNKTYPE)]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        info = tarfile.TarInfo("a.json")
        info.size = 2
        archive.addfile(info, io.BytesIO(b"{}"))
    assert contents(ShardSet([path])) == [("a", {"json": b"{}"})]


def test_long_and_foreign_names(tmp_path: Path) -> None:
    names = ["é" * 80 + "/ü.jpg", "x" * 300 + ".jpg", "line\nbreak.jpg"]
    path = write_tar(tmp_path / "x.tar", [(name, b"1") for name in names])
    assert [key for key, _ in contents(ShardSet([path]))] == [name.removesuffix(".jpg") for name in names]


def test_names_that_are_no_utf8_become_printable(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as archive:
        info = tarfile.TarInfo("caf\xe9.txt")
        archive.addfile(info)
    shards = ShardSet([tmp_path / "x.tar"])
    assert shards.key(0, 0) == "caf\\xe9"


class TestIndex:
    def test_is_kept_beside_the_tar_and_used_again(self, tmp_path: Path) -> None:
        path = write_tar(tmp_path / "x.tar", [("a.txt", b"1"), ("b.txt", b"2")])
        built = open_index(path)
        assert built.path == tmp_path / "x.tar.idx"
        written = built.path.stat().st_mtime_ns
        assert open_index(path) == built
        assert built.path.stat().st_mtime_ns == written
        head, *lines = built.path.read_text().splitlines()
        assert json.loads(head)["samples"] == 2
        assert json.loads(lines[0]) == ["a", ["txt", 512, 1]]
        body = built.path.read_bytes()[built.body :]
        assert built.info.digest == hashlib.sha256(body).hexdigest()

    def test_is_rebuilt_when_the_tar_changes(self, tmp_path: Path) -> None:
        path = write_tar(tmp_path / "x.tar", [("a.txt", b"1")])
        before = open_index(path)
        write_tar(path, [(f"{n}.txt", b"1" * 600) for n in range(20)])
        assert open_index(path).info.samples == 20
        write_tar(path, [("z.txt", b"1")])
        os.utime(path, ns=(2**61, 2**61))
        assert open_index(path).info.digest != before.info.digest

    @pytest.mark.parametrize("content", ["", "{", "[1]", "{}", "null\n", '{"samples": 1}\n', "\xff"])
    def test_is_rebuilt_when_it_is_broken(self, tmp_path: Path, content: str) -> None:
        path = write_tar(tmp_path / "x.tar", [("a.txt", b"1")])
        (tmp_path / "x.tar.idx").write_text(content, encoding="latin-1")
        assert open_index(path).info.samples == 1

    def test_lies_in_the_cache_where_the_folder_is_read_only(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = write_tar(tmp_path / "x.tar", [("a.txt", b"1")])
        monkeypatch.setenv("MMLAB_CACHE", str(tmp_path / "cache"))
        refuse_writing(monkeypatch, tmp_path)
        index = open_index(path)
        assert index.path.is_relative_to(tmp_path / "cache")
        assert open_index(path) == index
        assert contents(ShardSet([path])) == [("a", {"txt": b"1"})]

    def test_that_can_be_kept_nowhere_says_what_to_do(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = write_tar(tmp_path / "x.tar", [("a.txt", b"1")])
        (tmp_path / "file").touch()
        monkeypatch.setenv("MMLAB_CACHE", str(tmp_path / "file"))
        refuse_writing(monkeypatch, tmp_path)
        with pytest.raises(ValueError, match="set MMLAB_CACHE"):
            open_index(path)

    def test_of_many_samples_opens_in_little_memory(self, tmp_path: Path) -> None:
        path = write_tar(tmp_path / "x.tar", [(f"{n:05d}.txt", b"") for n in range(3000)])
        open_index(path)
        tracemalloc.start()
        open_index(path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 50_000 < (tmp_path / "x.tar.idx").stat().st_size

    def test_of_nothing_says_so(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"no shard .*missing\.tar: No such file"):
            open_index(tmp_path / "missing.tar")

    @pytest.mark.parametrize("content", [b"", b"not a tar" * 1000, b"\x1f\x8b" + bytes(range(256)) * 8])
    def test_of_no_tar_says_so(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "x.tar").write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.tar is no plain tar"):
            open_index(tmp_path / "x.tar")


def refuse_writing(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """As a read-only folder does; permissions do not stop the superuser, who may run the tests."""
    import mmlab.data.index as index

    write = index._write

    def refuse(path: Path, content: bytes) -> None:
        if path.parent == folder:
            raise PermissionError(30, "Read-only file system")
        write(path, content)

    monkeypatch.setattr(index, "_write", refuse)


class TestDamage:
    def three(self, path: Path) -> bytes:
        files = [(f"{n}.{e}", bytes([n]) * 700) for n in range(3) for e in ("jpg", "txt")]
        return write_tar(path, files).read_bytes()

    def test_complete_samples_before_a_cut_are_kept_at_every_length(self, tmp_path: Path) -> None:
        path = tmp_path / "x.tar"
        whole = self.three(path)
        size = 2 * (512 + 1024)  # of a sample
        for cut in range(512, 3 * size, 256):
            path.write_bytes(whole[:cut])
            shards = ShardSet([path])
            info = shards.infos[0]
            assert info.damage is not None
            # The last complete one may lack members that came after the cut; nobody can know.
            assert info.samples in (cut // size, max(0, cut // size - 1))
            assert all(len(members) == 2 for _, members in contents(shards))

    def test_a_damaged_header_ends_the_shard(self, tmp_path: Path) -> None:
        path = tmp_path / "x.tar"
        whole = bytearray(self.three(path))
        whole[2 * 1536 + 10] ^= 0xFF
        path.write_bytes(whole)
        info = ShardSet([path]).infos[0]
        assert info.samples == 0
        assert info.damage is not None
        assert "3072" in info.damage

    def test_a_whole_tar_is_not_damaged(self, tmp_path: Path) -> None:
        self.three(tmp_path / "x.tar")
        assert open_index(tmp_path / "x.tar").info.damage is None

    def test_a_shard_cut_after_indexing_breaks_its_samples_only(self, tmp_path: Path) -> None:
        path = tmp_path / "x.tar"
        whole = self.three(path)
        shards = ShardSet([path])
        path.write_bytes(whole[: 3 * 1024 + 600])
        assert shards.read(0, 0).key == "0"
        with pytest.raises(BrokenMember, match="shorter than its index"):
            shards.read(0, 1)

    def test_a_huge_member_is_not_read(self, tmp_path: Path) -> None:
        path = tmp_path / "x.tar"
        with path.open("wb") as file:
            info = tarfile.TarInfo("a.bin")
            info.size = 300 * 2**20
            file.write(info.tobuf())
            file.seek(info.size, os.SEEK_CUR)
            file.write(bytes(1024))
        shards = ShardSet([path])
        assert shards.counts.tolist() == [1]
        with pytest.raises(BrokenMember, match="above 256 MiB"):
            shards.read(0, 0)

    def test_members_far_apart_are_read_one_by_one(self, tmp_path: Path) -> None:
        path = tmp_path / "x.tar"
        files = [("a.jpg", b"picture"), ("README", bytes(3 * 2**20)), ("a.txt", b"text")]
        shards = ShardSet([write_tar(path, files)])
        assert contents(shards) == [("a", {"jpg": b"picture", "txt": b"text"})]


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


def test_index_can_be_built_again(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", [("a.txt", b"1")])
    assert build_index(path) == build_index(path)
