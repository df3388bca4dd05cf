"""Sets of remote shards, from servers that behave and from servers that do not."""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from shard_server import Shop, serve
from tars import contents

from mmlab.assets.fetch import FetchError, WrongFileError
from mmlab.data import shard_cache
from mmlab.data.remote import RemoteShards
from mmlab.data.shards import ShardSet, write_shards

COUNT = 3


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_cache, "_WAITS", (0.0, 0.0, 0.0))
    monkeypatch.setattr(shard_cache, "_SHORT_WAITS", (0.0,))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three shards of ten samples, 100 kB each."""
    rng = random.Random(0)
    samples = [{"__key__": f"{n:04d}", "txt": f"caption {n}", "bin": rng.randbytes(9000)} for n in range(30)]
    write_shards(samples, tmp_path / "local", "train", max_samples=10)
    return tmp_path / "local"


@pytest.fixture
def shop(folder: Path) -> Iterator[Shop]:
    with serve() as shop:
        shop.files = {path.name: path.read_bytes() for path in folder.glob("*.tar")}
        yield shop


@pytest.fixture
def remote(tmp_path: Path) -> RemoteShards:
    return RemoteShards(cache=str(tmp_path / "cache"))


def local(folder: Path) -> ShardSet:
    return ShardSet.find(str(folder / "*.tar"))


def find(shop: Shop, remote: RemoteShards) -> ShardSet:
    return ShardSet.find(f"{shop.url}/train-00000{{0..2}}.tar", remote=remote)


def first(shop: Shop, remote: RemoteShards) -> ShardSet:
    return ShardSet([f"{shop.url}/train-000000.tar"], remote=remote)


def forget_shards(remote: RemoteShards) -> None:
    for path in Path(str(remote.cache)).glob("*.tar"):
        path.unlink()


class TestGoodServer:
    def test_reads_what_the_files_hold(self, shop: Shop, folder: Path, remote: RemoteShards) -> None:
        shards, files = find(shop, remote), local(folder)
        assert shards.remote
        assert not files.remote
        assert shards.names == tuple(f"{shop.url}/train-00000{n}.tar" for n in range(3))
        assert shards.digest == files.digest
        assert shards.sizes.tolist() == [len(shop.files[name]) for name in sorted(shop.files)]
        assert files.sizes.tolist() == [0, 0, 0]
        assert shards.counts.tolist() == [10, 10, 10]
        assert shards.extensions == files.extensions
        assert contents(shards) == contents(files)
        assert sorted(shop.gets()) == sorted(shop.files)

    def test_the_second_time_asks_no_network(self, shop: Shop, remote: RemoteShards) -> None:
        read = contents(find(shop, remote))
        shop.asked.clear()
        again = find(shop, remote)
        assert contents(again) == read
        assert shop.asked == []
        forget_shards(remote)
        assert find(shop, remote).digest == again.digest
        assert shop.asked == []
        assert contents(find(shop, remote)) == read
        assert shop.gets() == sorted(shop.files)

    def test_keys_need_no_shard(self, shop: Shop, remote: RemoteShards) -> None:
        find(shop, remote)
        forget_shards(remote)
        shop.asked.clear()
        assert find(shop, remote).key(1, 3) == "0013"
        assert shop.asked == []

    def test_mixed_with_local_ones(self, shop: Shop, folder: Path, remote: RemoteShards) -> None:
        patterns = [f"{shop.url}/train-000001.tar", "train-000000.tar"]
        shards = ShardSet.find(patterns, folder=folder, remote=remote)
        assert shards.remote
        assert [key for key, _ in contents(shards)] == [f"{n:04d}" for n in range(20)]

    def test_pickles_into_another_process(self, shop: Shop, remote: RemoteShards) -> None:
        shards = find(shop, remote)
        read = contents(shards)
        shards.announce([0])
        assert contents(pickle.loads(pickle.dumps(shards))) == read

    def test_a_query_is_part_of_the_address(self, shop: Shop, folder: Path, remote: RemoteShards) -> None:
        for name in ("train-000000.tar", "train-000000.tar.idx"):
            shop.files[f"{name}?key=1"] = (folder / name).read_bytes()
        address = f"{shop.url}/train-000000.tar?key=1"
        assert len(contents(ShardSet.find(address, remote=remote))) == 10
        assert shop.gets(".idx?key=1") == ["train-000000.tar.idx?key=1"]

    def test_redirections_are_followed(self, shop: Shop, folder: Path, remote: RemoteShards) -> None:
        shop.redirects = True
        assert contents(find(shop, remote)) == contents(local(folder))


class TestIndexBesideTheShard:
    @pytest.fixture(autouse=True)
    def _indices(self, shop: Shop, folder: Path) -> None:
        shop.files |= {path.name: path.read_bytes() for path in folder.glob("*.idx")}

    @pytest.mark.parametrize("heads", [True, False])
    def test_is_used(self, shop: Shop, folder: Path, remote: RemoteShards, heads: bool) -> None:
        shop.heads = heads
        shards = find(shop, remote)
        assert shards.digest == local(folder).digest
        assert shop.gets() == []
        assert contents(shards) == contents(local(folder))
        assert shop.gets() == [f"train-00000{n}.tar" for n in range(3)]

    @pytest.mark.parametrize("spoil", [lambda data: data[:-20], lambda data: b"<html>soft 404</html>"])
    def test_is_not_used_where_it_is_broken(
        self, shop: Shop, folder: Path, remote: RemoteShards, spoil: Callable[[bytes], bytes]
    ) -> None:
        shop.files["train-000000.tar.idx"] = spoil(shop.files["train-000000.tar.idx"])
        assert find(shop, remote).digest == local(folder).digest
        assert shop.gets() == ["train-000000.tar"]

    def test_is_not_used_where_the_shard_has_another_size(
        self, shop: Shop, folder: Path, remote: RemoteShards
    ) -> None:
        shop.files["train-000000.tar"] += bytes(10240)
        assert first(shop, remote).counts.tolist() == [10]
        assert shop.gets() == ["train-000000.tar"]

    def test_that_lies_is_found_out(self, shop: Shop, remote: RemoteShards) -> None:
        shop.files["train-000000.tar.idx"] = shop.files["train-000001.tar.idx"]
        shards = first(shop, remote)
        assert len(shop.files["train-000000.tar"]) == len(shop.files["train-000001.tar"])
        with pytest.raises(WrongFileError, match=r"changed since it was indexed.\n.*renew http.*000.tar.idx"):
            shards.read(0, 0)

    def test_a_new_shard_with_a_new_index_replaces_the_old_one(
        self, shop: Shop, folder: Path, remote: RemoteShards
    ) -> None:
        first(shop, remote).read(0, 0)
        for kind in (".tar", ".tar.idx"):
            shop.files[f"train-000000{kind}"] = (folder / f"train-000001{kind}").read_bytes()
        assert first(shop, remote).read(0, 0).key == "0000"
        next(Path(str(remote.cache)).glob("index/*.idx")).unlink()  # as the remedy for a changed shard says
        assert first(shop, remote).read(0, 0).key == "0010"


class TestHostileServer:
    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("ranges", [True, False])
    def test_cut_connections(
        self, shop: Shop, folder: Path, remote: RemoteShards, seed: int, ranges: bool
    ) -> None:
        rng = random.Random(seed)
        shop.ranges = ranges
        shop.cuts = [rng.randrange(120_000) for _ in range(2 if not ranges else 3)]
        assert contents(find(shop, remote)) == contents(local(folder))

    def test_cuts_without_a_size_are_noticed(self, shop: Shop, folder: Path, remote: RemoteShards) -> None:
        shop.sized = shop.ranges = False
        shop.cuts = [0, 50_000]
        assert contents(first(shop, remote)) == contents(local(folder))[:10]

    def test_too_large_a_content_length(self, shop: Shop, folder: Path, remote: RemoteShards) -> None:
        shop.lie = 1000
        assert contents(first(shop, remote)) == contents(local(folder))[:10]
        shop.ranges = False
        with pytest.raises(FetchError, match=r"connection ended after \d+ of \d+ bytes"):
            find(shop, remote)

    def test_too_small_a_content_length(self, shop: Shop, remote: RemoteShards) -> None:
        shop.lie = -20_000
        shards = first(shop, remote)
        assert shards.damaged == shards.names
        assert [key for key, _ in contents(shards)] == [f"{n:04d}" for n in range(7)]
        shop.lie = 0
        forget_shards(remote)
        with pytest.raises(WrongFileError, match=r"announces \d+ bytes, not \d+.*\n.*delete .*idx to index"):
            first(shop, remote).read(0, 0)

    @pytest.mark.parametrize("status", [500, 503, 429])
    def test_troubles_pass(self, shop: Shop, folder: Path, remote: RemoteShards, status: int) -> None:
        shop.status = [status, status]
        assert contents(find(shop, remote)) == contents(local(folder))

    def test_missing_shard(self, shop: Shop, remote: RemoteShards, tmp_path: Path) -> None:
        with pytest.raises(
            FetchError, match=r"cannot fetch http.*/none.tar: the server answered 404"
        ) as caught:
            ShardSet([f"{shop.url}/none.tar"], remote=remote)
        assert str(caught.value).count("\n") == 1
        assert list((tmp_path / "cache").glob("*.*")) == []

    @pytest.mark.parametrize("body", [b"<!DOCTYPE html><html>log in</html>" * 100, os.urandom(3000), b""])
    def test_no_tar(self, shop: Shop, remote: RemoteShards, body: bytes) -> None:
        shop.files["train-000000.tar"] = body
        with pytest.raises(WrongFileError, match="no plain tar: it begins with"):
            first(shop, remote)
        shop.files.pop("train-000000.tar")
        with pytest.raises(FetchError, match="404"):  # nothing of it was kept
            first(shop, remote)

    def test_trickle(self, shop: Shop, remote: RemoteShards, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shard_cache, "_SILENCE", 0.1)
        shop.piece, shop.pause = 10, 0.03
        with pytest.raises(FetchError, match="less than 1024 bytes a second"):
            first(shop, remote)

    def test_silence(self, shop: Shop, remote: RemoteShards, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shard_cache, "_SILENCE", 0.1)
        shop.piece, shop.pause = 1, 1.0
        with pytest.raises(FetchError, match="timed out"):
            first(shop, remote)

    def test_a_shard_that_changed(self, shop: Shop, remote: RemoteShards) -> None:
        shards = find(shop, remote)
        forget_shards(remote)
        changed = shop.files["train-000001.tar"].replace(b"caption 10", b"caption !!")
        shop.files["train-000001.tar"] = changed
        assert shards.read(0, 0).key == "0000"
        with pytest.raises(WrongFileError, match=r"000001.tar has changed since it was indexed.\n.*delete"):
            shards.read(1, 0)

    def test_a_shard_that_changes_while_it_is_fetched(
        self, shop: Shop, folder: Path, remote: RemoteShards
    ) -> None:
        new = shop.files["train-000000.tar"].replace(b"caption 9", b"caption !")
        shop.swap = {"train-000000.tar": new}
        shop.cuts = [50_000]
        shards = first(shop, remote)
        assert shards.read(0, 9).members["txt"] == b"caption !"
        assert next(Path(str(remote.cache)).glob("*.tar")).read_bytes() == new


class TestAddresses:
    @pytest.mark.parametrize(
        ("pattern", "message"),
        [
            ("https://host/train-*.tar", "addresses are not listed.*range"),
            ("nonsense://host/a.tar", "no file system is called nonsense"),
            ("pipe:cat x.tar", "runs a shell command, which is not allowed.*remote.allow_pipe"),
            (
                "s3://bucket/train-{00..01}.tar",
                "train-00.tar: reading s3:// needs a package: pip install s3fs",
            ),
        ],
    )
    def test_refusals(
        self, remote: RemoteShards, monkeypatch: pytest.MonkeyPatch, pattern: str, message: str
    ) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(ValueError, match=message) as caught:
            ShardSet.find(pattern, remote=remote)
        assert "\n" not in str(caught.value)

    def test_settings_are_checked(self) -> None:
        with pytest.raises(ValueError, match="cache_bytes 0"):
            RemoteShards(cache_bytes=0)

    def test_no_place_for_the_cache(self, shop: Shop, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(ValueError, match=r"set remote.cache to a folder that may be written"):
            find(shop, RemoteShards(cache=str(tmp_path / "file" / "cache")))

    def test_file_address(self, folder: Path, remote: RemoteShards) -> None:
        folder.chmod(0o555)  # nothing is written beside the shards
        before = sorted(folder.iterdir())
        (folder / "train-000000.tar.idx").unlink()
        shards = ShardSet.find(f"{folder.as_uri()}/train-00000{{0..2}}.tar", remote=remote)
        assert contents(shards) == contents(local(folder))
        assert shards.remote
        folder.chmod(0o755)
        assert sorted(folder.iterdir()) == before

    def test_memory_address(self, folder: Path, remote: RemoteShards) -> None:
        from fsspec.implementations.memory import MemoryFileSystem

        memory = MemoryFileSystem()
        memory.pipe_file("/bucket/a.tar", (folder / "train-000000.tar").read_bytes())
        shards = ShardSet.find("memory://bucket/a.tar", remote=remote)
        assert contents(shards) == contents(local(folder))[:10]
        with pytest.raises(FetchError, match=r"memory://bucket/b.tar: FileNotFoundError"):
            ShardSet.find("memory://bucket/b.tar", remote=remote)
        memory.store.clear()


class TestPipes:
    @pytest.fixture
    def piped(self, remote: RemoteShards) -> RemoteShards:
        return RemoteShards(cache=remote.cache, allow_pipe=True)

    def test_reads(self, folder: Path, piped: RemoteShards) -> None:
        shards = ShardSet.find(f"pipe:cat {folder}/train-00000{{0..2}}.tar", remote=piped)
        assert contents(shards) == contents(local(folder))
        assert shards.digest == local(folder).digest

    @pytest.mark.parametrize(
        ("command", "message"),
        [
            ("echo no such bucket >&2; exit 3", r"exit status 3 \(no such bucket\)"),
            ("head -c 5000 {}/train-000000.tar; exit 1", "exit status 1"),
            ("no-such-program-anywhere", "exit status 127.*not found"),
            ("true", "no plain tar"),
            ("sleep 60", "silent for 0.2 s"),
        ],
    )
    def test_failing_commands(
        self, folder: Path, piped: RemoteShards, monkeypatch: pytest.MonkeyPatch, command: str, message: str
    ) -> None:
        monkeypatch.setattr(shard_cache, "_SILENCE", 0.2)
        with pytest.raises(FetchError, match=message):
            ShardSet.find("pipe:" + command.format(folder), remote=piped)

    def test_a_command_that_writes_many_errors(self, folder: Path, piped: RemoteShards) -> None:
        command = f"pipe:yes trouble | head -c 1000000 >&2; cat {folder}/train-000000.tar"
        assert len(contents(ShardSet.find(command, remote=piped))) == 10


def test_progress_is_one_line(shop: Shop, remote: RemoteShards, capsys: pytest.CaptureFixture[str]) -> None:
    find(shop, remote)
    find(shop, remote)
    assert capsys.readouterr().err == "indexing 3 remote shards\n"
