"""The newest whole checkpoint is found whatever happened to the others, and after a kill at any moment."""

from __future__ import annotations

import logging
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmlab.parallel import folder as folders
from mmlab.parallel.checkpoint_files import write_file
from mmlab.parallel.digests import SUMS, beside
from mmlab.parallel.folder import write_folder
from mmlab.parallel.stored import damage, former_of, open_checkpoint, part_of
from mmlab.runs.checkpoint import newest_good, whole_checkpoint

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled"),
    pytest.mark.filterwarnings("ignore:Detected pickle protocol"),  # a bit may say so
]


def make(step: int, size: int = 10) -> dict[str, Any]:
    state = {0: {"exp_avg": torch.full((size,), 2.0 * step)}}
    return {
        "state_dict": {"w": torch.full((size,), float(step))},
        "optimizer_states": [{"state": state, "param_groups": [{"lr": 0.1, "params": [0]}]}],
        "global_step": step,
    }


def write(path: Path, step: int, form: str = "file") -> Path:
    path.parent.mkdir(exist_ok=True)
    if form == "bare":  # as Lightning itself writes it
        torch.save(make(step), path)
    else:
        (write_file if form == "file" else write_folder)(path, make(step))
    return path


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def flip(path: Path, place: float, bit: int) -> None:
    """Change a bit somewhere between the beginning and the end."""
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1 << bit
    path.write_bytes(content)


@given(st.floats(0, 1), st.integers(0, 7), st.sampled_from(["file", "folder"]))
@settings(deadline=None, max_examples=60)
def test_any_flipped_bit_is_found(place: float, bit: int, form: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = write(Path(name) / "last.ckpt", 2, form)
        assert damage(path) is None
        files = [path] if form == "file" else sorted(path.iterdir())
        flip(files[bit % len(files)], place, bit)
        assert damage(path) is not None


@given(st.floats(0, 1), st.integers(0, 7))
@settings(deadline=None, max_examples=40)
def test_without_a_digest_what_can_be_read_has_its_tensors(place: float, bit: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = write(Path(name) / "last.ckpt", 2, "bare")
        flip(path, place, bit)
        if damage(path) is None:  # the bit meant nothing
            assert torch.equal(open_checkpoint(path).whole()["state_dict"]["w"], make(2)["state_dict"]["w"])


@pytest.mark.parametrize("form", ["file", "folder", "bare"])
@pytest.mark.parametrize("harm", ["emptied", "cut", "flipped"])
def test_a_damaged_one_is_set_aside_for_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, form: str, harm: str
) -> None:
    good, last = write(tmp_path / "epoch1.ckpt", 1), write(tmp_path / "last.ckpt", 2, form)
    file = last if form != "folder" else last / "__0_0.distcp"
    content = file.read_bytes()
    if harm == "flipped":
        place = content.index(torch.full((10,), 4.0).numpy().tobytes())
        file.write_bytes(content[:place] + b"\x01" + content[place + 1 :])
    else:
        file.write_bytes(b"" if harm == "emptied" else content[: len(content) // 2])
    assert newest_good(tmp_path, tidy=False) == good
    assert last.exists()
    assert not said(caplog)
    assert newest_good(tmp_path) == good
    assert not last.exists()
    assert not beside(last).exists()
    assert (tmp_path / "last.ckpt.damaged").exists()
    assert beside(tmp_path / "last.ckpt.damaged").exists() == (form == "file")
    (line,) = said(caplog)
    assert str(last) in line
    assert "epoch1.ckpt is used instead" in line
    assert newest_good(tmp_path) == good


def test_the_newest_has_the_most_steps_and_then_the_latest_time(tmp_path: Path) -> None:
    late, early = write(tmp_path / "a.ckpt", 9), write(tmp_path / "b.ckpt", 4)
    os.utime(early, (2e9, 2e9))
    assert newest_good(tmp_path) == late
    last = write(tmp_path / "last.ckpt", 9)
    os.utime(last, (2e9, 2e9))
    assert newest_good(tmp_path) == last


def test_nothing_is_no_checkpoint(tmp_path: Path) -> None:
    assert newest_good(tmp_path / "none") is None
    assert newest_good(tmp_path) is None
    torch.save({"state_dict": {"w": torch.ones(1)}, "global_step": 5}, tmp_path / "weights.ckpt")
    assert newest_good(tmp_path) is None, "training cannot go on from weights alone"
    assert (tmp_path / "weights.ckpt").exists()


def test_with_no_other_a_damaged_one_is_set_aside_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "last.ckpt", 1).write_bytes(b"")
    assert newest_good(tmp_path) is None
    assert "no other is whole" in caplog.text


def test_a_named_one_is_taken_if_it_is_whole(tmp_path: Path) -> None:
    good, newer = write(tmp_path / "epoch1.ckpt", 1), write(tmp_path / "last.ckpt", 2)
    assert whole_checkpoint(good, go_on=True) == good
    newer.write_bytes(newer.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"last.ckpt: .*SHA-256.*; the newest good one .*epoch1"):
        whole_checkpoint(newer, go_on=False)
    assert newer.exists()
    assert whole_checkpoint(newer, go_on=True) == good
    assert not newer.exists()


def test_what_is_no_checkpoint_is_left_alone(tmp_path: Path) -> None:
    write(tmp_path / "epoch1.ckpt", 1)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"notes.txt: this is no checkpoint"):
        whole_checkpoint(tmp_path / "notes.txt", go_on=True)
    (tmp_path / "alone").mkdir()
    alone = write(tmp_path / "alone" / "last.ckpt", 1)
    alone.write_bytes(b"")
    with pytest.raises(ValueError, match=r"last.ckpt"):
        whole_checkpoint(alone, go_on=True)
    assert alone.exists()


@pytest.mark.parametrize("allowed", range(4))
def test_a_folder_is_found_wherever_its_renames_are_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: int
) -> None:
    path, replace, left = write(tmp_path / "last.ckpt", 1, "folder"), os.replace, allowed

    def cut(source: Any, target: Any) -> None:
        nonlocal left
        if Path(source).parent == tmp_path:  # not those within the folder
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", cut)
        try:
            write_folder(path, make(2))
        except KeyboardInterrupt:
            assert allowed < 3
    wanted = 1 if allowed == 0 else 2
    assert open_checkpoint(path).rest["global_step"] == wanted
    assert damage(path) is None
    assert newest_good(tmp_path) == path
    assert open_checkpoint(path).rest["global_step"] == wanted
    assert [each.name for each in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_folder_that_was_being_written_is_no_checkpoint(tmp_path: Path) -> None:
    path = write(tmp_path / "last.ckpt", 1, "folder")
    os.replace(path, former_of(path))  # and the other was lost
    half = write(tmp_path / "other.ckpt", 2, "folder")
    (half / SUMS).unlink()
    os.replace(half, part_of(path))
    assert open_checkpoint(path).rest["global_step"] == 1
    assert newest_good(tmp_path) == path
    assert [each.name for each in tmp_path.iterdir()] == ["last.ckpt"]


def test_what_dead_processes_left_is_removed(tmp_path: Path) -> None:
    path, host = write(tmp_path / "last.ckpt", 1), socket.gethostname()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    gone = [
        f".last.ckpt.{dead.pid}@{host}.part", f".last.ckpt.sha256.{dead.pid}@{host}.part",
        f".old.ckpt.{os.getpid()}@{host}.part", ".last.ckpt.5@elsewhere.part", "orphan.ckpt.sha256",
    ]  # fmt: skip
    kept = [f".last.ckpt.{os.getppid()}@{host}.part", ".last.ckpt.6@elsewhere.part"]
    for name in (*gone, *kept):
        (tmp_path / name).write_text("x")
    os.utime(tmp_path / ".last.ckpt.5@elsewhere.part", (1e9, 1e9))
    assert newest_good(tmp_path, tidy=False) == path
    assert len(list(tmp_path.iterdir())) == 2 + len(gone) + len(kept)
    assert newest_good(tmp_path) == path
    left = {each.name for each in tmp_path.iterdir()}
    assert left == {"last.ckpt", "last.ckpt.sha256", *kept}


PROGRAM = """
import os, sys, torch
from pathlib import Path
from mmlab.parallel.checkpoint_files import write_file
from mmlab.parallel.folder import write_folder
path, form, first = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
weights = torch.zeros(500_000)
os.write(1, b"ready\\n")  # in one piece: the parent writes to the same pipe
for step in range(first, first + 100_000):
    state = {0: {"exp_avg": weights + step}}
    checkpoint = {
        "state_dict": {"w": weights + step}, "global_step": step,
        "optimizer_states": [{"state": state, "param_groups": [{"params": [0]}]}],
    }
    (write_file if form == "file" else write_folder)(path, checkpoint)
    os.write(1, b"%d\\n" % step)
"""


@pytest.mark.slow
@pytest.mark.parametrize("form", ["file", "folder"])
def test_twenty_kills_in_the_middle_of_a_save_lose_nothing(tmp_path: Path, form: str) -> None:
    rng, path, done, interrupted = random.Random(0), tmp_path / "checkpoints" / "last.ckpt", 0, 0
    path.parent.mkdir()
    # One process that has imported all forks the victims.
    forker = (
        "import os, sys\nimport mmlab.parallel.folder, mmlab.parallel.checkpoint_files\n"
        f"program = {PROGRAM!r}\n"
        "for line in sys.stdin:\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        sys.argv = ['victim', *line.split()]\n"
        "        exec(program)\n"
        "    os.write(1, b'pid %d\\n' % child)\n"
        "    os.waitpid(child, 0)\n"
        "    os.write(1, b'dead\\n')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", forker], text=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        for _ in range(20):
            process.stdin.write(f"{path} {form} {done + 1}\n")
            process.stdin.flush()
            pid, ready = 0, False
            while pid == 0 or not ready:
                word = process.stdout.readline().split()
                pid = int(word[1]) if word[0] == "pid" else pid
                ready = ready or word[0] == "ready"
            time.sleep(0.3 * rng.random())
            os.kill(pid, signal.SIGKILL)
            while (said := process.stdout.readline().strip()) != "dead":
                done = int(said)
            before = {each.name for each in path.parent.iterdir()}
            if done > 0 or path.exists():
                assert damage(path) is None
                held = int(open_checkpoint(path).rest["global_step"])
                assert held in (done, done + 1), "what was said to be complete is there, or the next one"
                assert newest_good(path.parent) == path
                assert int(open_checkpoint(path).rest["global_step"]) == held
                done = held
            else:
                assert newest_good(path.parent) in (None, path)
            left = {each.name for each in path.parent.iterdir()}
            assert left <= {"last.ckpt", "last.ckpt.sha256"}
            interrupted += before != left
    finally:
        process.stdin.close()
        process.wait(20)
        process.stdout.close()
    assert interrupted >= 5, "most kills hit a save"


def test_one_rank_alone_writes_its_folder_with_all_digests(tmp_path: Path) -> None:
    path = write(tmp_path / "last.ckpt", 1, "folder")
    names = {line.split("  ")[1] for line in (path / SUMS).read_text().splitlines()}
    assert names == {"__0_0.distcp", ".metadata", "meta.pt"}
    done = subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=path, check=False)
    assert done.returncode == 0


def test_a_folder_that_cannot_be_finished_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "last.ckpt", 1, "folder")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(folders, "write_sums", full)
        with pytest.raises(OSError, match="No space"):
            write_folder(path, make(2))
    assert damage(path) is None
    assert open_checkpoint(path).rest["global_step"] == 1
    assert [each.name for each in tmp_path.iterdir()] == ["last.ckpt"]
