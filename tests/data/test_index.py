"""The index of a tar: what it holds, where it lies, when it is rebuilt, and damaged tars."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tars import contents, with_webdataset, write_tar

from mmlab.data.decode import BrokenMember
from mmlab.data.index import build_index, open_index, split_name
from mmlab.data.shards import ShardSet


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

    @settings(max_examples=250, deadline=None)
    @given(st.sampled_from(["pax", "gnu"]), st.randoms(use_true_random=False))
    def test_flipped_bits_lose_samples_but_nothing_else(
        self, tmp_path_factory: pytest.TempPathFactory, kind: str, rng: random.Random
    ) -> None:
        path = tmp_path_factory.mktemp("fuzz") / "x.tar"
        format = tarfile.PAX_FORMAT if kind == "pax" else tarfile.GNU_FORMAT
        with tarfile.open(path, "w", format=format) as archive:
            for name in ("a.jpg", "é" * 120 + ".txt", "b.jpg", "b.txt"):
                info = tarfile.TarInfo(name)
                info.size = 20
                archive.addfile(info, io.BytesIO(bytes(20)))
        content = bytearray(path.read_bytes())
        for _ in range(rng.randint(1, 6)):
            content[rng.randrange(7000)] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        try:
            shards = ShardSet([path])
        except ValueError as error:
            assert "no plain tar" in str(error)  # noqa: PT017
            return
        for shard_sample in range(shards.infos[0].samples):
            with contextlib.suppress(BrokenMember):
                shards.read(0, shard_sample)

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


def test_index_can_be_built_again(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", [("a.txt", b"1")])
    assert build_index(path) == build_index(path)
