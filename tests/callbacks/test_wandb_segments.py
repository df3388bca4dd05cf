"""W&B's own files after a kill of the run and of W&B's service, as where a node loses its power."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from wandb.proto import wandb_internal_pb2

from mmlab.callbacks import wandb_segments
from mmlab.callbacks.wandb_segments import mend_segments

ATTEMPT = """
import os, signal, sys, time
from pathlib import Path
from mmlab.callbacks.history import Row
from mmlab.callbacks.run_logger import RunLogger

first, last, wait = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
logger = RunLogger(".", name="name", live=False)
logger.go_on([Row({"loss": step / 2}, step) for step in range(first)])
for step in range(first, last):
    logger.log_metrics({"loss": step / 2}, step=step)
logger.send(last)
if wait < 0:
    logger.finalize("success")
    logger.experiment.finish()
    sys.exit()
time.sleep(wait)
for task in Path("/proc").glob("[0-9]*/status"):
    try:
        if f"PPid:\\t{os.getpid()}\\n" in task.read_text():
            os.kill(int(task.parent.name), signal.SIGKILL)
    except OSError:
        pass
os.kill(os.getpid(), signal.SIGKILL)
"""


def attempt(folder: Path, first: int, last: int, wait: float) -> int:
    words = [sys.executable, "-c", ATTEMPT, str(first), str(last), str(wait)]
    return subprocess.run(words, cwd=folder, check=False, timeout=120, capture_output=True).returncode


def rows(folder: Path) -> list[tuple[int, float]]:
    """Number and loss of each row of all attempts, one after the other."""
    found = []
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        end = wandb_segments.HEADER
        with path.open("rb") as file:
            for place, content in wandb_segments._records(file):
                end = place
                record = wandb_internal_pb2.Record.FromString(content)
                if record.WhichOneof("record_type") == "history":
                    values = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
                    found.append((int(values["_step"]), float(values["loss"])))
        assert end == path.stat().st_size, "wandb sync takes no other"
    return found


@pytest.mark.slow
def test_rows_that_were_lost_are_sent_again(tmp_path: Path) -> None:
    """At once after they were sent, nothing is written; later, whole blocks are."""
    assert attempt(tmp_path, 0, 20, 0.3) == -9
    assert (tmp_path / "wandb" / "sent").read_text() == "20"
    assert attempt(tmp_path, 20, 400, 3) == -9
    assert (tmp_path / "wandb" / "sent").read_text() == "400"
    there = mend_segments(tmp_path / "wandb")
    assert there is not None
    assert there < 400, "W&B writes at once now: is this needed?"
    assert attempt(tmp_path, 400, 410, -1) == 0
    assert rows(tmp_path) == [(step, step / 2) for step in range(410)]
    assert len({path.name.rpartition("-")[2] for path in tmp_path.glob("wandb/offline-run-*")}) == 1


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert attempt(folder, 0, 400, -1) == 0
    return folder


@pytest.mark.parametrize("cut", [1, 9, 40_000])
def test_a_file_that_was_cut_anywhere_is_mended(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    monkeypatch.setattr(wandb_segments, "_QUIET", 0.0)
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True, symlinks=True)
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert mend_segments(tmp_path / "wandb") == 400
    size = path.stat().st_size
    os.truncate(path, size - cut)
    there = mend_segments(tmp_path / "wandb")
    assert there is not None
    assert [number for number, _ in rows(tmp_path)] == list(range(there))
    with path.open("ab") as file:
        file.write(bytes(5000))  # as a file system may leave it
    assert mend_segments(tmp_path / "wandb") == there
    assert mend_segments(tmp_path / "wandb") == there
    assert path.stat().st_size < size


def test_an_attempt_that_wrote_nothing_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb_segments, "_QUIET", 0.0)
    assert mend_segments(tmp_path) is None
    segment = tmp_path / "offline-run-20260101_000000-abc"
    segment.mkdir()
    assert mend_segments(tmp_path) == 0
    segment.mkdir()
    (segment / "run-abc.wandb").write_bytes(b":W&B\x00\x00\x00")
    assert mend_segments(tmp_path) == 0
    assert not segment.exists()


def test_what_cannot_be_read_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb_segments, "_QUIET", 0.0)
    path = tmp_path / "offline-run-20260101_000000-abc" / "run-abc.wandb"
    path.parent.mkdir()
    content = b":W&B\x00\x00\x09" + bytes(range(256)) * 200  # another way of writing
    path.write_bytes(content)
    assert mend_segments(tmp_path) is None
    assert path.read_bytes() == content

    def away(path: Path) -> int:
        raise OSError(errno.EIO, "away")

    monkeypatch.setattr(wandb_segments, "_mend", away)
    assert mend_segments(tmp_path) is None
    assert path.read_bytes() == content
