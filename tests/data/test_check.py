"""Checking shards: what is found, what is kept, what stops it."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image
from tars import write_tar

from mmlab.data import check
from mmlab.data.check import check_shards
from mmlab.data.duplicates import Alike, Overlap, find_overlap, split_of
from mmlab.data.findings import Findings, examine
from mmlab.data.shards import ShardSet, write_shards


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MMLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def picture(seed: int, *, size: int = 64, quality: int = 90) -> bytes:
    """A smooth random picture: the same of one seed, whatever its size and quality."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(file, "JPEG", quality=quality)
    return file.getvalue()


def sound(seed: int) -> bytes:
    file = io.BytesIO()
    wave = np.random.default_rng(seed).uniform(-0.5, 0.5, 800)
    soundfile.write(file, wave, 8000, format="WAV")
    return file.getvalue()


def sample(seed: int, **members: bytes) -> dict[str, object]:
    return {"__key__": f"{seed:05d}", "jpg": picture(seed), "txt": f"caption number {seed}", **members}


def test_captions_and_keys_are_counted(tmp_path: Path) -> None:
    fields = {"caption": "A dog.", "captions": {"en": "a dog runs", "fr": "Un chien"}}
    members = [("b.txt", b"two words"), ("a.json", json.dumps(fields).encode()), ("b.txt", b"again")]
    found = examine(write_tar(tmp_path / "a.tar", members))
    assert found.words == {1: 1, 2: 3, 3: 1}
    assert found.characters == {5: 1, 6: 1, 8: 1, 9: 1, 10: 1}
    assert (found.duplicates, found.unsorted) == (1, 1)
    assert found.examples == {"unsorted": ["a"], "duplicates": ["b"]}
    assert not found.fine


def test_unsorted_keys_and_lacking_members_are_not_wrong(tmp_path: Path) -> None:
    found = examine(write_tar(tmp_path / "a.tar", [("b.txt", b"x"), ("a.txt", b"x"), ("c.json", b"{}")]))
    assert found.unsorted == 1
    assert found.fine


def test_what_is_kept_reads_back(tmp_path: Path) -> None:
    found = examine(write_shards([sample(n, wav=sound(n)) for n in range(3)], tmp_path, "train")[0])
    again = Findings.from_json(found.to_json())
    assert again == found
    for kind, rows in found.marks.items():
        assert (again.marks[kind] == rows).all()
    assert [len(found.marks[kind]) for kind in ("keys", "images", "sounds", "texts")] == [3, 3, 3, 3]


def test_processes_find_what_this_one_finds(tmp_path: Path) -> None:
    paths = write_shards([sample(n) for n in range(6)], tmp_path, "train", max_samples=2)
    (tmp_path / "train-000009.tar").write_bytes(b"no tar")
    paths.append(tmp_path / "train-000009.tar")
    seen: list[Path] = []
    alone = check_shards(paths)
    several = check_shards(paths, jobs=2, fresh=True, done=seen.append)
    assert [found.path for found in several] == paths
    assert several == alone
    assert sorted(seen) == paths
    assert [found.fine for found in several] == [True, True, True, False]


def test_a_second_check_reads_only_what_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_shards([sample(n) for n in range(4)], tmp_path, "train", max_samples=2)
    first = check_shards(paths)
    read: list[Path] = []

    def spy(path: Path) -> Findings:
        read.append(path)
        return examine(path)

    monkeypatch.setattr(check, "examine", spy)
    assert check_shards(paths) == first
    assert read == []
    write_tar(paths[1], [("x.txt", b"other")])
    assert check_shards(paths)[1].samples == 1
    assert read == [paths[1]]
    check_shards(paths, fresh=True)
    assert read == [paths[1], *paths]
    monkeypatch.setattr(check, "VERSION", -1)
    check_shards(paths)
    assert len(read) == 5


@pytest.mark.parametrize("content", ["", "{", "[]", '{"samples": 3}', "null"])
def test_damaged_memory_is_not_believed(tmp_path: Path, cache: Path, content: str) -> None:
    paths = write_shards([sample(0)], tmp_path, "train")
    first = check_shards(paths)
    (kept,) = (cache / "checks").iterdir()
    kept.write_text(content)
    assert check_shards(paths) == first


def test_a_cache_that_cannot_be_written_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MMLAB_CACHE", str(tmp_path / "file"))
    assert check_shards(write_shards([sample(0)], tmp_path, "train"))[0].fine


def test_a_lying_index_is_a_finding(tmp_path: Path) -> None:
    path = write_shards([sample(0), sample(1)], tmp_path, "train")[0]
    index = path.with_name(path.name + ".idx")
    index.write_text(index.read_text().replace('"jpg",512', '"jpg",999999999'))
    assert not examine(path).fine


DYING = """
import os, sys
from pathlib import Path
from mmlab.data import check
from mmlab.data.findings import examine

def die(path):
    if path.name == "train-000001.tar":
        os.kill(os.getpid(), 9)
    return examine(path)

check.examine = die
if __name__ == "__main__":
    found = check.check_shards([Path(word) for word in sys.argv[1:]], jobs=2)
    print([part.damage for part in found])
"""


def test_a_process_that_dies_is_a_finding_of_its_shard_alone(tmp_path: Path) -> None:
    paths = write_shards([sample(n) for n in range(3)], tmp_path, "train", max_samples=1)
    (tmp_path / "dying.py").write_text(DYING)
    words = [sys.executable, str(tmp_path / "dying.py"), *map(str, paths)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[None, 'the process that read it died: out of memory?', None]"


SLOW = """
import signal, sys, time
from mmlab.data import check
from mmlab.data.findings import examine
from mmlab.cli import main

def slow(path):
    if path.name != "train-000000.tar":
        time.sleep(600)
    return examine(path)

check.examine = slow
if __name__ == "__main__":
    # A shell that runs the tests in the background has its children ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as a shell may
    sys.exit(main(["shards", "check", "--jobs", "2", *sys.argv[1:]]))
"""


def test_an_interrupted_check_goes_on(tmp_path: Path, cache: Path) -> None:
    paths = write_shards([sample(n) for n in range(3)], tmp_path, "train", max_samples=1)
    (tmp_path / "slow.py").write_text(SLOW)
    words = [sys.executable, str(tmp_path / "slow.py"), *map(str, paths)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            deadline = time.monotonic() + 120
            while not list((cache / "checks").glob("*.json")) and time.monotonic() < deadline:
                time.sleep(0.05)
            os.killpg(process.pid, signal.SIGINT)  # what a terminal does
            _, said = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 130
    assert said.splitlines()[-1].startswith("mmlab: interrupted the same command goes on")
    assert len(list((cache / "checks").glob("*.json"))) == 1
    assert all(found.fine for found in check_shards(paths))


class TestOverlap:
    def overlap(self, tmp_path: Path, **splits: list[dict[str, object]]) -> Overlap:
        paths = [path for name, samples in splits.items() for path in write_shards(samples, tmp_path, name)]
        self.shards = ShardSet(paths)
        return find_overlap(check_shards(paths), [split_of(path, {}) for path in paths])

    def keys(self, pair: Alike) -> tuple[str, str]:
        return self.shards.key(*pair.first), self.shards.key(*pair.second)

    def test_a_picture_in_two_splits_leaks_exact_or_not(self, tmp_path: Path) -> None:
        train = [sample(n) for n in range(6)]
        test = [sample(10, jpg=picture(2)), sample(11, jpg=picture(4, size=96, quality=60)), sample(12)]
        found = self.overlap(tmp_path, train=train, test=test)
        (leak,) = found.shared
        assert (leak.kind, leak.splits, leak.samples, leak.exact) == (
            "images",
            ("test", "train"),
            (2, 2),
            (1, 1),
        )
        assert [self.keys(pair) for pair in leak.examples] == [("00010", "00002"), ("00011", "00004")]
        assert [pair.same for pair in leak.examples] == [True, False]
        assert leak.leak
        assert not found.fine
        assert (found.duplicates["images"].samples, found.duplicates["images"].near) == (2, 2)

    def test_a_sound_in_two_splits_leaks(self, tmp_path: Path) -> None:
        train = [sample(n, wav=sound(n)) for n in range(3)]
        found = self.overlap(tmp_path, train=train, val=[sample(7, wav=sound(1))])
        assert [(shared.kind, shared.leak) for shared in found.shared] == [("sounds", True)]

    def test_a_caption_in_two_splits_is_only_said(self, tmp_path: Path) -> None:
        train = [sample(n) for n in range(3)]
        found = self.overlap(tmp_path, train=train, val=[sample(7, txt=b"Caption: NUMBER 1")])
        assert [(shared.kind, shared.exact) for shared in found.shared] == [("texts", (1, 1))]
        assert found.fine

    def test_what_repeats_in_one_split_is_not_wrong(self, tmp_path: Path) -> None:
        found = self.overlap(tmp_path, train=[sample(0), sample(1, jpg=picture(0)), sample(2)])
        assert found.duplicates["images"].samples == 2
        assert [self.keys(pair) for pair in found.duplicates["images"].examples] == [("00000", "00001")]
        assert found.fine

    def test_twice_in_one_sample_is_no_repeat(self, tmp_path: Path) -> None:
        both = {"left.jpg": picture(0), "right.jpg": picture(0), "small.jpg": picture(0, size=40)}
        found = self.overlap(tmp_path, train=[sample(0, **both), sample(1)])
        assert found.duplicates["images"].samples == 0
        assert found.duplicates["images"].near == 0

    def test_keys_may_repeat_across_splits_but_not_across_shards_of_one(self, tmp_path: Path) -> None:
        assert self.overlap(tmp_path, train=[sample(0)], val=[sample(0, jpg=picture(9))]).fine
        paths = [write_tar(tmp_path / f"x-{n}.tar", [("a.txt", b"x"), (f"{n}.txt", b"y")]) for n in range(3)]
        found = find_overlap(check_shards(paths), ["x"] * 3)
        assert found.keys.samples == 3
        assert not found.fine


@pytest.mark.parametrize(
    ("name", "split"),
    [("train-000000.tar", "train"), ("val_03.tar", "val"), ("my-test-1.tar", "my-test"), ("00012.tar", "all"),
     ("shard.tar", "all"), ("val-000001.tar.gz", "val")],
)  # fmt: skip
def test_splits_by_name(name: str, split: str) -> None:
    assert split_of(Path("data") / name, {}) == split


def test_splits_by_pattern() -> None:
    given = {"val": "*/holdout-*", "train": "*.tar"}
    assert split_of(Path("a/holdout-1.tar"), given) == "val"
    assert split_of(Path("a/b-1.tar"), given) == "train"
    assert split_of(Path("a/b-1.tar"), {"val": "c*"}) == "other"
