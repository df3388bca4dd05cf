"""How checkpoints reach the disk: behind training, in order, whole, whatever the disk does."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmlab.parallel import checkpoint_files
from mmlab.parallel.checkpoint_files import CheckpointFiles, write_file
from mmlab.parallel.digests import beside, proven, recorded
from mmlab.parallel.stored import damage, open_checkpoint
from mmlab.runs.checkpoint import newest_good

Checkpoint = dict[str, Any]


def make(step: int, size: int = 10) -> Checkpoint:
    weights = torch.full((size,), float(step))
    state = {0: {"step": torch.tensor(float(step)), "exp_avg": torch.full((size,), 2.0 * step)}}
    return {
        "state_dict": {"w": weights, "tied": weights[:5]},
        "optimizer_states": [{"state": state, "param_groups": [{"lr": 0.1, "params": [0]}]}],
        "global_step": step,
        "loops": {"done": [step]},
    }


def step_of(path: Path) -> int:
    return int(open_checkpoint(path).rest["global_step"])


class Gate:
    """Holds the writer back until it is opened; says no as often as it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.reached = threading.Event()
        self.refusals: list[int] = []
        monkeypatch.setattr(checkpoint_files, "write_file", self.write)

    def write(self, path: Path, checkpoint: Checkpoint) -> int:
        self.reached.set()
        assert self.open.wait(60)
        if self.refusals:
            raise OSError(self.refusals.pop(), "the disk says no")
        return write_file(path, checkpoint)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.open.set()


def test_a_file_has_its_digest_beside_it_as_sha256sum_writes_it(tmp_path: Path) -> None:
    CheckpointFiles().save_checkpoint(make(3), tmp_path / "deep" / "last.ckpt")
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["last.ckpt", "last.ckpt.sha256"]
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "last.ckpt.sha256"], cwd=tmp_path / "deep", check=False
    )
    assert done.returncode == 0
    assert damage(tmp_path / "deep" / "last.ckpt") is None
    assert CheckpointFiles().load_checkpoint(tmp_path / "deep" / "last.ckpt")["global_step"] == 3


def test_behind_training_the_weights_are_those_of_the_moment(gate: Gate, tmp_path: Path) -> None:
    files, checkpoint = CheckpointFiles(), make(1)
    with files.behind():
        files.save_checkpoint(checkpoint, tmp_path / "a.ckpt")  # returns, though nothing can be written
    assert gate.reached.wait(60)
    assert not (tmp_path / "a.ckpt").exists()
    assert files.last_save is None
    checkpoint["state_dict"]["w"].fill_(99)
    checkpoint["optimizer_states"][0]["state"][0]["exp_avg"].fill_(99)
    checkpoint["loops"]["done"].append(99)
    gate.open.set()
    found = files.load_checkpoint(tmp_path / "a.ckpt")  # which waits
    wanted = make(1)
    assert torch.equal(found["state_dict"]["w"], wanted["state_dict"]["w"])
    assert torch.equal(found["optimizer_states"][0]["state"][0]["exp_avg"], torch.full((10,), 2.0))
    assert found["loops"] == {"done": [1]}
    assert files.last_save is not None
    assert files.last_save.path == tmp_path / "a.ckpt"
    assert files.last_save.size == (tmp_path / "a.ckpt").stat().st_size
    assert files.last_save.weights == 40, "what shares memory counts once"
    assert files.last_save.held <= files.last_save.seconds
    files.teardown()


def test_saves_and_removals_keep_their_order(gate: Gate, tmp_path: Path) -> None:
    files = CheckpointFiles()
    gate.open.set()
    files.save_checkpoint(make(1), tmp_path / "old.ckpt")
    gate.open.clear()
    with files.behind():
        for step in (2, 3):
            files.save_checkpoint(make(step), tmp_path / "last.ckpt")
        files.remove_checkpoint(tmp_path / "old.ckpt")
    assert (tmp_path / "old.ckpt").exists(), "nothing that replaces it is complete"
    gate.open.set()
    files.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "last.ckpt.sha256"]
    assert step_of(tmp_path / "last.ckpt") == 3
    files.teardown()


def test_without_memory_training_waits_and_it_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(checkpoint_files, "available_memory", lambda: 100)
    files = CheckpointFiles()
    with files.behind():
        for step in (1, 2):
            files.save_checkpoint(make(step), tmp_path / "last.ckpt")
            assert step_of(tmp_path / "last.ckpt") == step
    assert caplog.text.count("training waits") == 1
    assert files.last_save is not None
    assert files.last_save.held == files.last_save.seconds


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_says_no_fails_the_save_and_not_the_run(
    gate: Gate, tmp_path: Path, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    gate.open.set()
    files = CheckpointFiles()
    files.save_checkpoint(make(1), tmp_path / "last.ckpt")
    gate.refusals = [number]
    with files.behind():
        files.save_checkpoint(make(2), tmp_path / "last.ckpt")
    files.wait()
    assert step_of(tmp_path / "last.ckpt") == 1
    assert (files.failed_saves, files.take_failures(), files.take_failures()) == (
        1, [tmp_path / "last.ckpt"], []
    )  # fmt: skip
    (line,) = (record.getMessage() for record in caplog.records)
    for word in (str(tmp_path / "last.ckpt"), "the disk says no", "needed", "free", "before it is kept"):
        assert word in line
    files.save_checkpoint(make(3), tmp_path / "last.ckpt")
    assert step_of(tmp_path / "last.ckpt") == 3
    files.teardown()


def test_other_errors_end_the_run(gate: Gate, tmp_path: Path) -> None:
    gate.open.set()
    gate.refusals = [errno.EACCES, errno.EACCES]
    files = CheckpointFiles()
    with pytest.raises(OSError, match="says no"):
        files.save_checkpoint(make(1), tmp_path / "last.ckpt")
    with files.behind():
        files.save_checkpoint(make(1), tmp_path / "last.ckpt")
    with pytest.raises(OSError, match="says no"):
        files.wait()
    files.teardown()


@pytest.mark.parametrize("after", [0, 300, 1000, 100_000])
def test_an_error_in_the_middle_of_a_file_is_told_as_it_is(tmp_path: Path, after: int) -> None:
    """The writer of torch makes another error of it. A limit of the system stands for the disk."""
    path = tmp_path / "last.ckpt"
    write_file(path, make(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (after, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            write_file(path, make(2, 100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno in checkpoint_files.DISK
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "last.ckpt.sha256"]
    assert damage(path) is None
    assert step_of(path) == 1


def test_a_full_file_system_keeps_what_was_there(caplog: pytest.LogCaptureFixture) -> None:
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small file system")
    with tempfile.TemporaryDirectory() as folder:
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
        if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
            pytest.skip("this machine lets nobody mount")
        try:
            files, path = CheckpointFiles(), Path(folder) / "checkpoints" / "last.ckpt"
            files.save_checkpoint(make(1), path)
            with files.behind():
                files.save_checkpoint(make(2, 1_000_000), path)
                files.remove_checkpoint(path)
            files.wait()
            assert files.failed_saves == 1
            assert "No space left on device (about 8.0 MB needed, 1.0 MB free)" in caplog.text
            assert sorted(p.name for p in path.parent.iterdir()) == ["last.ckpt", "last.ckpt.sha256"]
            assert damage(path) is None
            assert step_of(path) == 1
            files.save_checkpoint(make(3), path)
            assert step_of(path) == 3
            files.teardown()
        finally:
            subprocess.run(["umount", folder], check=True)


def test_a_save_that_is_cut_off_between_two_renames_leaves_a_file_that_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of the renames is the last one that happens."""
    path, replace = tmp_path / "last.ckpt", os.replace
    for allowed in range(4):
        write_file(path, make(1))
        left = allowed

        def cut(source: Any, target: Any) -> None:
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", cut)
            if allowed < 3:
                with pytest.raises(KeyboardInterrupt):
                    write_file(path, make(2))
            else:
                write_file(path, make(2))
        assert damage(path) is None
        assert step_of(path) == (1 if allowed < 2 else 2)
        assert len(recorded(path)) == (2 if allowed in (1, 2) else 1)


def test_an_older_file_without_digest_is_not_measured_by_that_of_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    torch.save(make(1), path)

    def cut(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", cut)
        with pytest.raises(KeyboardInterrupt):
            write_file(path, make(2))
    assert proven(path) is None
    assert damage(path) is None


def test_what_a_failed_save_spared_goes_with_the_next_removal(gate: Gate, tmp_path: Path) -> None:
    gate.open.set()
    files = CheckpointFiles()
    a, b, c = (tmp_path / f"{name}.ckpt" for name in "abc")
    files.save_checkpoint(make(1), a)
    gate.refusals = [errno.ENOSPC]
    files.save_checkpoint(make(2), b)
    files.remove_checkpoint(a)
    assert step_of(a) == 1
    files.save_checkpoint(make(3), c)
    files.remove_checkpoint(b)
    assert not a.exists()
    assert not beside(a).exists()
    assert step_of(c) == 3


@settings(deadline=None, max_examples=40)  # each waits for the disk
@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.booleans(), st.booleans()), min_size=1, max_size=12),
    st.booleans(),
)
def test_rotation_leaves_the_newest_good_one_whatever_fails(
    turns: list[tuple[str, bool, bool]], behind: bool
) -> None:
    """Each turn saves under some name, which fails or not, and then asks to remove another one."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as monkeypatch:
        folder, files, gate = Path(name), CheckpointFiles(), Gate(monkeypatch)
        gate.open.set()
        newest: tuple[Path, int] | None = None
        wanted: list[Path] = []
        for step, (letter, fine, remove) in enumerate(turns, 1):
            path = folder / f"{letter}.ckpt"
            gate.refusals = [] if fine else [errno.ENOSPC]
            if behind:
                with files.behind():
                    files.save_checkpoint(make(step), path)
            else:
                files.save_checkpoint(make(step), path)
            if remove and wanted and wanted[0] != path:
                files.remove_checkpoint(wanted.pop(0))
            wanted = [*(other for other in wanted if other != path), path]
            files.wait()  # what is refused is the next one that is written
            if fine:
                newest = path, step
            if newest is not None:
                assert step_of(newest[0]) == newest[1]
                assert damage(newest[0]) is None
                assert newest_good(folder, tidy=False) == newest[0]
        files.teardown()


def test_what_is_no_checkpoint_says_what_would_be(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "last.ckpt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"this is a run directory: take .*checkpoints/last\.ckpt"):
        open_checkpoint(run)
    with pytest.raises(ValueError, match=r"nothing is there; did you mean .*last\.ckpt"):
        open_checkpoint(run / "checkpoints" / "lst.ckpt")
