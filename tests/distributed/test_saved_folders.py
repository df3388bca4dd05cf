"""Folders that two ranks write: digests of both, and a rank that cannot write fails the save on both."""

from __future__ import annotations

import errno
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from mmlab import collectives
from mmlab.parallel import digests
from mmlab.parallel.checkpoint_files import CheckpointFiles
from mmlab.parallel.digests import SUMS, proven
from mmlab.parallel.stored import damage, open_checkpoint


def make(step: int) -> dict[str, Any]:
    """Each rank has a tensor of its own."""
    return {"state_dict": {f"w{collectives.rank()}": torch.full((100,), float(step))}, "global_step": step}


def save_twice(path: Path, culprit: int | None, number: int) -> tuple[int, int | None, list[Path], float]:
    """The second time one rank cannot write."""
    files = CheckpointFiles()
    files.save_folder(make(1), path)
    with pytest.MonkeyPatch.context() as monkeypatch:
        if culprit == collectives.rank():

            def fsync(file: int) -> None:
                raise OSError(number, "the disk says no")

            monkeypatch.setattr(digests.os, "fsync", fsync)
        start = time.monotonic()
        files.save_folder(make(2), path)
    step = None if files.last_save is None else int(open_checkpoint(path).rest["global_step"])
    return files.failed_saves, step, files.take_failures(), time.monotonic() - start


def test_a_folder_has_the_digests_of_all_ranks(ranks: Any, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    first, second = ranks(save_twice, path, None, 0)
    assert first[:3] == second[:3] == (0, 2, [])
    names = {line.split("  ")[1] for line in (path / SUMS).read_text().splitlines()}
    assert names == {"__0_0.distcp", "__1_0.distcp", ".metadata", "meta.pt"}
    assert proven(path)
    assert [each.name for each in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("culprit", [0, 1])
def test_a_rank_that_cannot_write_fails_the_save_on_all(ranks: Any, tmp_path: Path, culprit: int) -> None:
    path = tmp_path / "last.ckpt"
    for failed, step, failures, seconds in ranks(save_twice, path, culprit, errno.ENOSPC):
        assert (failed, step, failures) == (1, 1, [path])
        assert seconds < 60
    assert damage(path) is None
    assert [each.name for each in tmp_path.iterdir()] == ["last.ckpt"]


def test_what_will_not_pass_ends_all(ranks: Any, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="the disk says no"):
        ranks(save_twice, tmp_path / "last.ckpt", 1, errno.EACCES)
    first, second = ranks(save_twice, tmp_path / "last.ckpt", None, 0)  # neither hangs
    assert first[:3] == second[:3] == (0, 2, [])
