"""Thousands of tars that are broken, or want to do harm, through all that reads them.

What must hold, whatever a tar is: opening it succeeds or says ValueError; every sample is read or skipped
with a reason; nothing takes long, or much memory; nothing is written but the index and the cache; nothing is
unpickled; no path is followed out of a tar.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hostile_runs
import numpy as np
import pytest
from hostile import CRAFTED, END, good, header, member
from hostile_members import SMALL, pickled
from hostile_runs import Watch, make_readers, refuse, through

from mmlab.batch import Batch
from mmlab.data.reader import Reader
from mmlab.data.shards import ShardSet


@pytest.fixture(scope="module")
def watch(tmp_path_factory: pytest.TempPathFactory) -> Watch:
    return Watch(tmp_path_factory.mktemp("hostile").resolve())


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Reader, ...]:
    return make_readers(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def root(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with shards/ and a cache; afterwards nothing has happened anywhere else."""
    monkeypatch.setenv("MMLAB_CACHE", str(watch.root / "cache"))
    monkeypatch.chdir(watch.root / "elsewhere")
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(np, "load", refuse)
    yield watch.root
    complaints, watch.complaints = watch.complaints, []
    assert complaints == []
    check_folder(watch.root)


def check_folder(root: Path) -> None:
    expected = {"cache", "elsewhere", "secret", "shards", "tokenizer"}
    assert {path.name for path in root.iterdir()} <= expected
    assert list((root / "elsewhere").iterdir()) == []
    assert {path.name for path in (root / "shards").iterdir()} <= {"x.tar", "x.tar.idx"}


def program(folder: Path, *words: str) -> Any:
    """Run `hostile_runs.py`."""
    # Each arena of malloc reserves addresses, which count against the limit without being used.
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, hostile_runs.__file__, str(folder), *words],
        env=environment, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    result, complaints = json.loads(done.stdout)
    assert complaints == []
    check_folder(folder)
    return result


@pytest.mark.slow
def test_thousands_of_random_mutations(tmp_path: Path) -> None:
    outcomes = program(tmp_path, "fuzz", "0", "2000")
    # The mutations reach every part: else this would be a test of the first header.
    for name in (
        "image: cannot decode",
        "text: invalid UTF-8",
        "audio: cannot decode",
        "signal: cannot decode",
    ):
        assert outcomes[name] >= 20, outcomes
    assert outcomes["refused"] >= 20
    assert outcomes["read"] >= 2000


@pytest.mark.slow
def test_large_members_in_bounded_memory(tmp_path: Path) -> None:
    assert program(tmp_path, "large") == {}


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_tars(root: Path, watch: Watch, readers: tuple[Reader, ...], name: str) -> None:
    through(watch, CRAFTED[name], readers)


@pytest.mark.parametrize("name", SMALL)
def test_crafted_members(root: Path, watch: Watch, readers: tuple[Reader, ...], name: str) -> None:
    member, data, reason = SMALL[name]
    batch = through(watch, good(member.encode(), data), readers)
    assert isinstance(batch, Batch)
    assert batch.keys == ("a", "b", "c")
    assert [tuple(skip) for skip in batch.skips] == ([("c", reason)] if reason else [])


def test_no_pickle_is_read(root: Path, watch: Watch, readers: tuple[Reader, ...]) -> None:
    for extension, data in pickled(root / "harm").items():
        batch = through(watch, good(f"c.{extension}".encode(), data), readers)
        assert isinstance(batch, Batch)
        assert batch.valid.tolist()[:2] == [True, True]
    assert not (root / "harm").exists()


def test_links_lead_nowhere(root: Path, watch: Watch, readers: tuple[Reader, ...]) -> None:
    secret = os.fsencode(root / "secret")
    links = [
        header(b"c.txt", kind=kind, link=link)
        for kind in (b"1", b"2")
        for link in (secret, b"../secret", b"a.txt", b"/etc/passwd")
    ]
    batch = through(watch, b"".join(links) + member(b"c.npy", b"") + END, readers)
    assert isinstance(batch, Batch)
    assert batch.keys == ("c",)
    assert batch.text is not None
    assert not batch.text.present.any()


@pytest.mark.parametrize("kind", ["directory", "pipe", "device"])
def test_what_is_no_file(root: Path, kind: str) -> None:
    path = root / "shards" / "odd.tar"
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    try:
        with pytest.raises(ValueError, match=r"odd\.tar: it is no file"):
            ShardSet([path])
    finally:
        path.rmdir() if kind == "directory" else path.unlink()
