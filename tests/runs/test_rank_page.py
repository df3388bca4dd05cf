"""Notes of a rank outlive its process, and no reader sees half of one."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import assume, given, settings

from mmlab.runs import rank_page
from mmlab.runs.rank_page import SIZE, RankPage, read_pages


def test_what_was_noted_is_read(tmp_path: Path) -> None:
    for rank in (10, 2):
        RankPage(tmp_path, rank).note(rank, "train", ["a", "b/ü"])
    RankPage(tmp_path, 3)
    first, second = read_pages(tmp_path)
    assert (first.rank, first.step, first.phase, first.keys) == (2, 2, "train", ("a", "b/ü"))
    assert (first.more, first.pid, second.rank) == (0, os.getpid(), 10)
    assert first.listing() == "a, b/ü"
    assert read_pages(tmp_path / "other") == []


@pytest.mark.parametrize("count", [1, 1000, 100_000])
def test_keys_without_room_are_counted(tmp_path: Path, count: int) -> None:
    page = RankPage(tmp_path, 0)
    keys = [f"shard-{number:09d}/π" for number in range(count)]
    page.note(1, "val", keys)
    (read,) = read_pages(tmp_path)
    assert len(read.keys) + read.more == count
    assert read.keys == tuple(keys[: len(read.keys)])
    assert read.more == 0 or read.listing().endswith(f"and {read.more} more")
    assert read.keys, "some are named"
    assert (tmp_path / "ranks" / "rank0.page").stat().st_size == SIZE


@given(st.lists(st.text(alphabet='",\\\\ ab[]', max_size=6), min_size=10, max_size=60))
def test_the_list_is_cut_between_keys(keys: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rank_page, "_ROOM", 80)
        words = json.dumps(keys, separators=(",\n", ":"))
        assume(len(words) > 80)
        text, count = rank_page._cut(words)
    assert json.loads(text) == keys[:count]
    assert len(text) <= 80
    assert len(json.dumps(keys[: count + 1], separators=(",\n", ":"))) > 80 - 2


def test_one_key_that_is_too_long_is_counted(tmp_path: Path) -> None:
    RankPage(tmp_path, 0).note(1, "train", ["x" * SIZE, "y"])
    (read,) = read_pages(tmp_path)
    assert (read.keys, read.more) == ((), 2)


@settings(max_examples=50, deadline=None)
@given(
    notes=st.integers(2, 4),
    keys=st.lists(st.text(max_size=20), max_size=20),
    share=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_a_note_that_is_cut_off_anywhere_leaves_the_one_before(
    notes: int, keys: list[str], share: float, seed: int
) -> None:
    """Of the bytes of the last note any part may have arrived, in any order."""
    with tempfile.TemporaryDirectory() as name:
        run = Path(name)
        path = run / "ranks" / "rank0.page"
        page = RankPage(run, 0)
        for step in range(notes):
            before = path.read_bytes()
            page.note(step, "train", [*keys, str(step)])
        after = path.read_bytes()
        rng = random.Random(seed)
        changed = [place for place in range(SIZE) if after[place] != before[place]]
        torn = bytearray(before)
        for place in changed:
            if rng.random() < share:
                torn[place] = after[place]
        path.write_bytes(torn)
        (read,) = read_pages(run)
        assert read.step == (notes - 1 if torn == after else notes - 2)
        assert read.keys[-1] == str(read.step)
        # A process that goes on with this page does not write over the note that is whole.
        RankPage(run, 0).note(notes, "train")
        assert read_pages(run)[0].step == notes


def test_garbage_is_no_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_page, "_TRIES", 2)
    folder = tmp_path / "ranks"
    folder.mkdir()
    (folder / "rank0.page").write_bytes(os.urandom(SIZE))
    (folder / "rank1.page").write_bytes(b"")
    (folder / "rank2.page").write_bytes(b"\1" * 50)
    (folder / "rankx.page").write_bytes(b"")
    assert read_pages(tmp_path) == []


def test_a_killed_writer_is_read_at_any_time(tmp_path: Path) -> None:
    """Notes come as fast as they can; every one that is read is whole, also after SIGKILL."""
    program = (
        "import sys; from pathlib import Path; from mmlab.runs.rank_page import RankPage\n"
        "page, step = RankPage(Path(sys.argv[1]), 0), 0\n"
        "while True:\n"
        "    step += 1; page.note(step, 'train', [str(step)] * (step % 900))\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)])
    steps: list[int] = []
    try:
        while len(steps) < 300:
            for read in read_pages(tmp_path):
                assert len(read.keys) == read.step % 900
                assert set(read.keys) <= {str(read.step)}
                steps.append(read.step)
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert steps == sorted(steps)
    (last,) = read_pages(tmp_path)
    assert last.step >= steps[-1]
    assert last.pid == writer.pid
