"""The cache of remote shards: its bound, the processes that share it, reading ahead."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
from shard_server import Shop, serve
from tars import contents

from mmlab.assets import fetch
from mmlab.assets.fetch import FetchError
from mmlab.data import shard_cache
from mmlab.data.remote import RemoteShards
from mmlab.data.shards import ShardSet, write_shards

SHARDS = 6
SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(shard_cache, "_WAITS", (0.0, 0.0, 0.0))
    monkeypatch.setattr(shard_cache, "_SHORT_WAITS", (0.0,))
    before = set(threading.enumerate())
    yield
    wait_for(lambda: not any(t.name == "shards ahead" for t in set(threading.enumerate()) - before))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Shards of equal size, and their indices."""
    folder = tmp_path_factory.mktemp("shards")
    rng = random.Random(0)
    samples = [{"__key__": f"{n:04d}", "bin": rng.randbytes(9000)} for n in range(SHARDS * 10)]
    write_shards(samples, folder, "s", max_samples=10)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def shop(files: dict[str, bytes]) -> Iterator[Shop]:
    with serve() as shop:
        shop.files = dict(files)
        yield shop


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def size(files: dict[str, bytes]) -> int:
    return len(files["s-000000.tar"])


def find(shop: Shop, cache: Path, limit: int = 10**9) -> ShardSet:
    return ShardSet.find(
        f"{shop.url}/s-{{000000..00000{SHARDS - 1}}}.tar",
        remote=RemoteShards(cache=str(cache), cache_bytes=limit),
    )


def kept(cache: Path) -> list[str]:
    """Numbers of the shards in the cache."""
    return sorted(path.name[7] for path in cache.glob("*.tar"))


def used(cache: Path) -> int:
    return sum(path.stat().st_size for path in cache.iterdir() if path.suffix in (".tar", ".part"))


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.01)


class TestBound:
    def test_is_kept_while_reading_at_random(self, shop: Shop, files: dict[str, bytes], cache: Path) -> None:
        limit = 3 * size(files) + 100
        shards, whole = find(shop, cache, limit), contents(find(shop, cache))
        rng, most, stop = random.Random(0), [0], threading.Event()

        def watch() -> None:
            while not stop.is_set():
                try:
                    most[0] = max(most[0], used(cache))
                except FileNotFoundError:
                    continue

        for path in cache.glob("*.tar"):
            path.unlink()
        watcher = threading.Thread(target=watch)
        watcher.start()
        for _ in range(200):
            shard, sample = rng.randrange(SHARDS), rng.randrange(10)
            assert shards.read(shard, sample) == whole[10 * shard + sample]
        stop.set()
        watcher.join()
        assert 0 < most[0] <= limit

    def test_first_indexing_keeps_it_too(self, shop: Shop, files: dict[str, bytes], cache: Path) -> None:
        shop.files = {name: data for name, data in files.items() if name.endswith(".tar")}
        limit = 2 * size(files)
        shards = find(shop, cache, limit)
        assert shards.counts.sum() == 10 * SHARDS
        assert sorted(shop.gets()) == sorted(shop.files)
        assert used(cache) <= limit

    def test_the_shard_used_longest_ago_goes(self, shop: Shop, files: dict[str, bytes], cache: Path) -> None:
        for shard in (0, 1, 2, 0, 3):  # each opened anew
            find(shop, cache, 3 * size(files)).read(shard, 0)
            time.sleep(0.01)
        assert kept(cache) == ["0", "2", "3"]

    def test_a_shard_in_use_goes_last_and_stays_readable(
        self, shop: Shop, files: dict[str, bytes], cache: Path
    ) -> None:
        first, second = (find(shop, cache, 2 * size(files)) for _ in range(2))
        sample = first.read(0, 0)
        for shard in (1, 2, 3):
            find(shop, cache, 2 * size(files)).read(shard, 0)
        assert kept(cache) == ["0", "3"]
        second.read(3, 0)
        second.read(4, 0)  # both are in use now
        assert kept(cache) == ["3", "4"]
        assert first.read(0, 0) == sample
        assert used(cache) <= 2 * size(files)

    def test_a_shard_above_the_bound(self, shop: Shop, cache: Path) -> None:
        shards = find(shop, cache, 50_000)
        with pytest.raises(FetchError, match=r"may hold 50000.\nRaise remote.cache_bytes"):
            shards.read(0, 0)
        assert used(cache) == 0

    def test_commands_of_unknown_size_share_it(
        self, tmp_path: Path, files: dict[str, bytes], cache: Path
    ) -> None:
        for name, data in files.items():
            (tmp_path / name).write_bytes(data)
        remote = RemoteShards(cache=str(cache), cache_bytes=size(files) + 1000, allow_pipe=True)
        shards = ShardSet.find(f"pipe:cat {tmp_path}/s-{{000000..000005}}.tar", remote=remote)
        assert [key for key, _ in contents(shards)] == [f"{n:04d}" for n in range(10 * SHARDS)]
        assert used(cache) <= size(files) + 1000


class TestFullDisk:
    def test_others_make_room(self, shop: Shop, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        find(shop, cache).read(0, 0)
        copy, refusals = fetch._copy, [1]

        def full(answer: fetch.Answer, file: BinaryIO, grow: Callable[[int, int | None], None]) -> int:
            if refusals:
                refusals.pop()
                raise OSError(errno.ENOSPC, "No space left on device")
            return copy(answer, file, grow)

        monkeypatch.setattr(fetch, "_copy", full)
        find(shop, cache).read(1, 0)
        assert kept(cache) == ["1"]

    def test_says_so_where_nothing_can_go(
        self, shop: Shop, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shards = find(shop, cache)
        sample = shards.read(0, 0)

        def full(answer: fetch.Answer, file: BinaryIO, grow: Callable[[int, int | None], None]) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(fetch, "_copy", full)
        with pytest.raises(FetchError, match=r"cannot keep .*/cache: No space left.*\n.*set remote.cache"):
            shards.read(1, 0)
        assert shards.read(0, 0) == sample
        assert kept(cache) == ["0"]

    @pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
    def test_on_a_real_disk(self, shop: Shop, files: dict[str, bytes], cache: Path) -> None:
        cache.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={3 * size(files) // 1024}k", "tmpfs", str(cache)]
        if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
            pytest.skip("no leave to mount")
        try:
            for shard in (0, 1, 2, 3, 4, 0):
                assert find(shop, cache).read(shard, 3).key == f"00{shard}3"
            shards = find(shop, cache)
            with pytest.raises(FetchError, match="No space left"):
                contents(shards)  # which keeps them open
            del shards
            assert find(shop, cache).read(5, 0).key == "0050"
        finally:
            subprocess.run(["umount", "-l", str(cache)], check=True)


def _read_all(url: str, cache: str) -> None:
    shards = ShardSet.find(f"{url}/s-{{000000..000005}}.tar", remote=RemoteShards(cache=cache))
    assert len(contents(shards)) == 10 * SHARDS


class TestProcesses:
    def test_each_shard_is_fetched_once(self, shop: Shop, files: dict[str, bytes], cache: Path) -> None:
        shop.files = {name: data for name, data in files.items() if name.endswith(".tar")}
        shop.piece, shop.pause = 30_000, 0.02
        jobs = [SPAWN.Process(target=_read_all, args=(shop.url, str(cache))) for _ in range(2)]
        for job in jobs:
            job.start()
        for job in jobs:
            job.join(60)
            assert job.exitcode == 0
        assert sorted(shop.gets()) == sorted(shop.files)

    def test_a_killed_one_blocks_nobody(self, shop: Shop, files: dict[str, bytes], cache: Path) -> None:
        shop.piece, shop.pause = 1000, 0.1
        job = SPAWN.Process(target=_read_all, args=(shop.url, str(cache)))
        job.start()
        wait_for(lambda: any(path.stat().st_size > 0 for path in cache.glob("*.part")), 30)
        assert job.pid is not None
        os.kill(job.pid, signal.SIGKILL)
        job.join(10)
        assert list(cache.glob("*.claim"))
        shop.pause = 0.0
        shards = find(shop, cache, size(files))  # has no room for what the other left
        assert shards.read(1, 0).key == "0010"
        assert shards.read(0, 0).key == "0000"
        assert list(cache.glob("*.part")) + list(cache.glob("*.claim")) == []

    def test_damaged_files_are_fetched_again(self, shop: Shop, cache: Path) -> None:
        find(shop, cache).read(0, 0)
        path = next(cache.glob("*.tar"))
        path.write_bytes(path.read_bytes()[:1000])
        assert find(shop, cache).read(0, 0).key == "0000"


class TestAhead:
    def test_fetches_in_order_and_keeps_what_is_sooner(
        self, shop: Shop, files: dict[str, bytes], cache: Path
    ) -> None:
        shards = find(shop, cache, 3 * size(files))
        shop.asked.clear()
        shards.announce([4, 2, 0, 1, 3])
        wait_for(lambda: kept(cache) == ["0", "2", "4"])
        time.sleep(0.1)
        assert shop.gets() == ["s-000004.tar", "s-000002.tar", "s-000000.tar"]
        shards.read(4, 0)
        assert len(shop.gets()) == 3
        shards.announce([2, 0])
        other = find(shop, cache, 3 * size(files))
        other.announce([5])
        time.sleep(0.1)
        assert kept(cache) == ["0", "2", "4"]  # all are in use

    def test_makes_room_from_what_nobody_needs(
        self, shop: Shop, files: dict[str, bytes], cache: Path
    ) -> None:
        find(shop, cache, 2 * size(files)).read(0, 0)
        shards = find(shop, cache, 2 * size(files))
        shards.announce([1, 2])
        wait_for(lambda: kept(cache) == ["1", "2"])
        shards.announce([3])
        wait_for(lambda: "3" in kept(cache))

    def test_room_is_looked_for_again(self, shop: Shop, files: dict[str, bytes], cache: Path) -> None:
        other = find(shop, cache, size(files))
        other.read(0, 0)
        shards = find(shop, cache, size(files))
        shards.announce([1])
        time.sleep(0.1)
        assert kept(cache) == ["0"]
        del other
        wait_for(lambda: kept(cache) == ["1"])

    def test_trouble_is_left_to_the_reader(self, shop: Shop, cache: Path) -> None:
        shards = find(shop, cache)
        shop.status = [404]
        shards.announce([0, 1])
        wait_for(lambda: kept(cache) == ["1"])
        assert shards.read(0, 0).key == "0000"
        shop.files.clear()
        shards.announce([2])
        with pytest.raises(FetchError, match="404"):
            shards.read(2, 0)

    def test_starts_no_thread_before_and_leaves_none(self, shop: Shop, cache: Path) -> None:
        before = set(threading.enumerate())
        shards = find(shop, cache)
        shards.read(0, 0)
        assert not any(t.name == "shards ahead" for t in set(threading.enumerate()) - before)
        shards.announce([1])
        wait_for(lambda: kept(cache) == ["0", "1"])
        del shards
        wait_for(lambda: not any(t.name == "shards ahead" for t in set(threading.enumerate()) - before))

    def test_keeps_no_process_from_ending(self, shop: Shop, cache: Path) -> None:
        find(shop, cache)
        shop.piece, shop.pause = 1000, 1.0
        code = (
            "from mmlab.data.shards import *; import time\n"
            f"s = ShardSet(['{shop.url}/s-000000.tar'], remote=RemoteShards(cache={str(cache)!r}))\n"
            "s.announce([0]); time.sleep(0.3)"
        )
        subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
        assert len(shop.gets()) == 1


def test_reading_an_open_shard_takes_no_lock_and_no_look_at_the_disk(
    shop: Shop, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = find(shop, cache)
    shards.read(0, 0)
    for name in ("open", "stat", "fstat", "utime"):
        monkeypatch.setattr(os, name, None)
    monkeypatch.setattr("fcntl.flock", None)
    keys = [shards.read(0, sample).key for sample in range(10)]
    monkeypatch.undo()
    assert keys == [f"{n:04d}" for n in range(10)]
