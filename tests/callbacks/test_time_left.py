"""A run that is told to stop saves what there is time for, and knows of the attempts before."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultMetric
from lightning.pytorch.utilities.exceptions import SIGTERMException
from small_runs import Batches, make_task, make_trainer

from mmlab.callbacks.checkpoints import Checkpoints
from mmlab.callbacks.preemption import Preemption
from mmlab.callbacks.standing import Standing
from mmlab.launch.notice import Notice
from mmlab.launch.own_job import OwnJob
from mmlab.parallel.checkpoint_files import CheckpointFiles, Saved
from mmlab.runs.attempts import Failure, noted_failure
from mmlab.runs.checkpoint import read_weights
from mmlab.runs.status import Status, read_status, write_status

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*is already saved during checkpointing"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided"),
]


class Told(Callback):
    """Sends SIGTERM in the second step."""

    def __init__(self, notice: Notice) -> None:
        self.notice = notice

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == 1:
            self.notice.note(signal.SIGTERM, None)


@pytest.mark.parametrize(
    ("left", "noted", "last", "kept"),
    [
        (100.0, None, None, "last.ckpt"),
        (1.0, None, None, "last.ckpt"),  # nobody knows how long it takes
        (100.0, 10.0, None, "last.ckpt"),
        (5.0, 10.0, None, "stopped-step2.safetensors"),
        (10.0, 100.0, 10.0, "last.ckpt"),  # what this attempt has seen counts
        (5.0, None, 10.0, "stopped-step2.safetensors"),
        (3.0, None, 10.0, None),
    ],
)
def test_what_is_saved_depends_on_the_time_that_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: float, noted: float | None, last: float | None,
    kept: str | None,
) -> None:  # fmt: skip
    monkeypatch.setattr(OwnJob, "find", classmethod(lambda cls: OwnJob("1001", 0)))
    monkeypatch.setattr(OwnJob, "seconds_left", lambda self, told, kill_wait: left)
    monkeypatch.setattr("mmlab.callbacks.preemption.kill_wait", lambda: 30.0)
    write_status(tmp_path, Status("preempted", save_seconds=noted))
    notice, files, folder = Notice(), CheckpointFiles(), tmp_path / "checkpoints"
    if last is not None:
        files.last_save = Saved(folder / "last.ckpt", last, 0.0, size=100, weights=40)
    trainer = make_trainer(
        tmp_path, Told(notice), Preemption(notice), Checkpoints(folder, minutes=None), steps=4,
        enable_checkpointing=True,
    )  # fmt: skip
    trainer.strategy.checkpoint_io = files
    task = make_task("full")
    with pytest.raises(SIGTERMException):
        trainer.fit(task, Batches(per_epoch=4))
    names = {path.name for path in folder.glob("[!.]*")} if folder.exists() else set()
    assert {name for name in names if not name.endswith(".sha256")} == ({kept} if kept else set())
    if kept == "stopped-step2.safetensors":
        found = read_weights(folder / kept).state
        assert {name: value.tolist() for name, value in found.items()} == {
            name: value.tolist() for name, value in task.state_dict().items()
        }


def test_walltimes_that_bring_nothing_come_to_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A first checkpoint that never fits the disk, or a test that takes longer than the walltime."""
    late = True
    monkeypatch.setattr(OwnJob, "out_of_time", lambda self: late)

    def stop(saved: int | None) -> Standing:
        """An attempt, from its beginning to its end."""
        found = Standing(tmp_path, OwnJob("1001", 0))
        trainer = make_trainer(tmp_path, steps=1)
        found.setup(trainer, make_task("full"), "test")
        found.status = found.status._replace(saved_step=saved)
        found.on_exception(trainer, make_task("full"), SIGTERMException())
        return found

    for saved in (None, 4, 4, 4):
        assert stop(saved).give_up() is None
    late = False  # preempted, once more: that says nothing of the run
    assert stop(4).give_up() is None
    late = True
    for saved in (None, 4):
        assert stop(saved).give_up() is None
    why = stop(4).give_up()
    assert why is not None
    assert "3 walltimes in a row ended without a checkpoint newer than that of step 4" in why
    assert read_status(tmp_path).state == "failed"
    assert (noted_failure(tmp_path) or Failure("", 0)).hopeless
    assert stop(5).give_up() is None


def test_what_an_attempt_has_learned_of_saves_outlives_it(tmp_path: Path) -> None:
    """For `mmlab jobs`, `mmlab doctor`, and a stop before the first save."""
    write_status(tmp_path, Status("preempted", saved_step=2, saved_at=1.0, save_seconds=7.0))
    folder = tmp_path / "checkpoints"
    saves = Checkpoints(folder, minutes=None, save_last=True)
    trainer = make_trainer(tmp_path, saves, steps=2, enable_checkpointing=True)
    trainer.fit(make_task("full"), Batches())
    checkpoint = folder / "last.ckpt"
    os.utime(checkpoint, (1000.0, 1000.0))
    trainer = make_trainer(tmp_path, Standing(tmp_path), steps=3)
    trainer.fit(make_task("full"), Batches(), ckpt_path=checkpoint, weights_only=True)
    status = read_status(tmp_path)
    assert status.save_seconds == 7.0
    assert (status.saved_step, status.saved_at) == (2, 1000.0)


class Fails(Callback):
    """At the end of an epoch, whose means over all ranks are not computed yet."""

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        pl_module.log("train/mean", 1.0, on_step=False, on_epoch=True, sync_dist=True, batch_size=1)

    def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
        raise ArithmeticError("made on purpose")


def test_after_an_error_nothing_is_asked_of_other_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Means are computed by all ranks together, and those that have not failed do not come."""
    computed: list[str] = []
    compute = _ResultMetric.compute

    def noted(metric: _ResultMetric) -> Any:
        computed.append(metric.meta.name)
        return compute(metric)

    monkeypatch.setattr(_ResultMetric, "compute", noted)
    trainer = make_trainer(tmp_path, Standing(tmp_path), Fails(), steps=4)
    with pytest.raises(ArithmeticError):
        trainer.fit(make_task("full"), Batches(per_epoch=4))
    assert computed == []
    assert read_status(tmp_path).state == "failed"
