"""The newest checkpoint is kept, whatever was best."""

from __future__ import annotations

import errno
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import Mock, create_autospec

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, WandbLogger
from small_runs import Batches, SmallTask, fit, make_task, make_trainer
from torchmetrics import Metric

from mmlab.callbacks.checkpoints import FAILED, Checkpoints
from mmlab.parallel import checkpoint_files
from mmlab.parallel.checkpoint_files import CheckpointFiles
from mmlab.parallel.strategies import DistributedDataParallel
from mmlab.runs.checkpoint import find_checkpoint

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*is already saved during checkpointing"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


def steps(folder: Path) -> dict[str, int]:
    """The step of each checkpoint."""
    return {path.stem: torch.load(path, weights_only=True)["global_step"] for path in folder.glob("*.ckpt")}


def worse_and_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first validation is the best."""
    scores = iter(range(10, 0, -1))
    monkeypatch.setattr(SmallTask, "make_metrics", lambda self: Scores(scores))


@pytest.mark.parametrize(
    ("settings", "last"),
    [
        ({"val_check_interval": 2}, 6),  # in the middle of an epoch, too
        ({}, 6),  # at the end of each epoch
        ({"check_val_every_n_epoch": 2}, 6),  # and not at each
    ],
)
def test_the_newest_is_kept_when_the_best_was_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], last: int
) -> None:
    worse_and_worse(monkeypatch)
    keep = Checkpoints(tmp_path / "kept", monitor="val/score", mode="max", save_last=True, filename="best")
    trainer = make_trainer(
        tmp_path, keep, steps=last, enable_checkpointing=True, limit_val_batches=1, **settings
    )
    trainer.fit(make_task("full"), Batches(per_epoch=2))
    found = steps(tmp_path / "kept")
    assert found["last"] == last
    assert found["best"] < last


def test_a_run_that_stops_between_validations_keeps_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worse_and_worse(monkeypatch)
    folder = tmp_path / "checkpoints"
    keep = Checkpoints(folder, monitor="val/score", mode="max", save_last=True, filename="best")
    trainer = make_trainer(
        tmp_path, keep, steps=5, enable_checkpointing=True, limit_val_batches=1, check_val_every_n_epoch=2
    )
    trainer.fit(make_task("full"), Batches(per_epoch=2))
    assert steps(folder) == {"best": 4, "last": 5}
    assert find_checkpoint(tmp_path) == folder / "best.ckpt", "the last knows the best"


class Failing(CheckpointFiles):
    """Cannot write some of the checkpoints, counted from 1."""

    now: ClassVar[Failing]

    def __init__(self, *numbers: int) -> None:
        super().__init__()
        self.numbers = numbers
        self.written = 0


def fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where the strategy's files say so; the writer runs in a thread of its own."""
    true_write = checkpoint_files.write_file

    def write(path: Path, checkpoint: Any) -> int:
        files = Failing.now
        files.written += 1
        if files.written in files.numbers:
            raise OSError(errno.ENOSPC, "No space left on device")
        return true_write(path, checkpoint)

    monkeypatch.setattr(checkpoint_files, "write_file", write)


class Scores(Metric):
    full_state_update = False

    def __init__(self, scores: Any) -> None:
        super().__init__()
        self.scores = scores

    def update(self, output: Any) -> None:
        """Nothing to keep."""

    def compute(self) -> dict[str, float]:
        return {"score": float(next(self.scores))}


class Lines(Logger):
    """Keeps what it is told."""

    name, version = "lines", "0"

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[float, int | None]] = []

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if FAILED in metrics:
            self.told.append((metrics[FAILED], step))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to keep."""


def scored_run(
    root: Path, monkeypatch: pytest.MonkeyPatch, scores: list[float], failing: tuple[int, ...], **more: Any
) -> tuple[Checkpoints, Lines, CheckpointFiles]:
    """A validation after every second step; each improvement writes a best one and then a last one."""
    found = iter(scores)
    monkeypatch.setattr(SmallTask, "make_metrics", lambda self: Scores(found))
    Failing.now = files = Failing(*failing)
    lines = Lines()
    keep = Checkpoints(
        root / "checkpoints", monitor="val/score", mode="max", save_last=True,
        filename="s{step}", auto_insert_metric_name=False, **more,
    )  # fmt: skip
    trainer = make_trainer(
        root, keep, steps=2 * len(scores), enable_checkpointing=True, limit_val_batches=1, logger=lines,
        plugins=[files],
    )  # fmt: skip
    trainer.fit(make_task("full"), Batches(per_epoch=2))
    return keep, lines, files


@pytest.mark.filterwarnings("ignore:.*smaller than the logging interval")
def test_a_best_one_that_was_not_written_is_not_believed_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(monkeypatch)
    # Written: best 2, last 2, best 4 (which fails), last 4, last 6.
    keep, lines, files = scored_run(tmp_path, monkeypatch, [0.5, 0.9, 0.7], failing=(3,))
    folder = tmp_path / "checkpoints"
    assert steps(folder) == {"s6": 6, "last": 6}, "0.7 is better than 0.5, the best that there is"
    assert keep.best_model_path == str(folder / "s6.ckpt")
    assert keep.best_model_score is not None
    assert float(keep.best_model_score) == pytest.approx(0.7)
    assert list(keep.best_k_models) == [str(folder / "s6.ckpt")]
    assert files.failed_saves == 1
    assert [number for number, _ in lines.told] == [1.0]


@pytest.mark.filterwarnings("ignore:.*smaller than the logging interval")
def test_the_best_one_before_stays_when_a_better_one_fails_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(monkeypatch)
    keep, _, _ = scored_run(tmp_path, monkeypatch, [0.5, 0.9], failing=(3,))
    folder = tmp_path / "checkpoints"
    assert steps(folder) == {"s2": 2, "last": 4}
    assert keep.best_model_path == str(folder / "s2.ckpt")
    assert {path.name for path in folder.iterdir()} == {
        "s2.ckpt", "s2.ckpt.sha256", "last.ckpt", "last.ckpt.sha256"
    }  # fmt: skip
    # What the newest checkpoint believes was not known to have failed when it was written.
    state = torch.load(folder / "last.ckpt", weights_only=True)["callbacks"]
    other = Checkpoints(folder, monitor="val/score", mode="max", save_last=True)
    other.load_state_dict(next(s for key, s in state.items() if key.startswith("ModelCheckpoint")))
    assert other.best_model_path == str(folder / "s2.ckpt")
    assert {path: float(score) for path, score in other.best_k_models.items()} == {
        str(folder / "s2.ckpt"): pytest.approx(0.5)
    }


@pytest.mark.filterwarnings("ignore:.*smaller than the logging interval")
def test_every_save_may_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail(monkeypatch)
    keep, lines, files = scored_run(tmp_path, monkeypatch, [0.5, 0.9, 0.7], failing=tuple(range(1, 20)))
    assert not list((tmp_path / "checkpoints").glob("*.ckpt"))
    assert keep.best_model_path == ""
    assert keep.best_k_models == {}
    assert lines.told[-1][0] == files.failed_saves


class SaveNow(Callback):
    """Asks for a save after some steps."""

    def __init__(self, keep: Checkpoints, *at: int) -> None:
        self.keep, self.at = keep, at

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step in self.at:
            self.keep.save_now(trainer)


def test_a_save_at_once_leaves_the_best_of_this_step_to_the_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter([0.5, 0.9])
    monkeypatch.setattr(SmallTask, "make_metrics", lambda self: Scores(found))
    folder = tmp_path / "checkpoints"
    keep = Checkpoints(folder, monitor="val/score", mode="max", save_last=True, filename="best")
    saved: list[str] = []
    monkeypatch.setattr(
        L.Trainer, "save_checkpoint",
        lambda self, path, *_: saved.append(f"{Path(path).stem} {self.global_step}"),
    )  # fmt: skip
    trainer = make_trainer(
        tmp_path, SaveNow(keep, 1, 4), keep, steps=4, enable_checkpointing=True, limit_val_batches=1
    )
    trainer.fit(make_task("full"), Batches(per_epoch=2))
    assert saved == ["last 1", "best 2", "last 2", "last 4", "best 4", "last 4"]


def test_what_was_just_saved_is_not_saved_again_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep, saved = Checkpoints(tmp_path / "c", save_last=True, every_n_epochs=9), []
    monkeypatch.setattr(L.Trainer, "save_checkpoint", lambda self, path, *_: saved.append(Path(path).stem))
    trainer = make_trainer(tmp_path, SaveNow(keep, 3), keep, steps=3, enable_checkpointing=True)
    trainer.fit(make_task("full"), Batches(per_epoch=9))
    assert saved == ["last"]


class Break(Callback):
    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == 3:
            raise RuntimeError("broken")


def test_an_exception_saves_once_and_waits_until_it_is_written(tmp_path: Path) -> None:
    keep = Checkpoints(tmp_path / "c", save_last=True, every_n_epochs=9, save_on_exception=True)
    files = CheckpointFiles()
    trainer = make_trainer(tmp_path, Break(), keep, steps=9, enable_checkpointing=True, plugins=[files])
    with pytest.raises(RuntimeError, match="broken"):
        trainer.fit(make_task("full"), Batches(per_epoch=9))
    assert steps(tmp_path / "c") == {"last": 3}
    assert files.last_save is not None
    assert files.last_save.path == tmp_path / "c" / "last.ckpt"


def test_it_is_due_by_the_time_since_the_newest(tmp_path: Path) -> None:
    keep = Checkpoints(tmp_path, minutes=2.0)
    now = time.monotonic()
    assert not keep.due(now + 119)
    assert keep.due(now + 121)
    assert not Checkpoints(tmp_path, minutes=None).due(now + 1e9)
    folder = tmp_path / "c"
    keep = Checkpoints(folder, save_last=True, minutes=2.0)
    keep._saved_at = now - 1000
    assert keep.due(now)
    make_trainer(tmp_path, keep, steps=1, enable_checkpointing=True).fit(make_task("full"), Batches())
    assert not keep.due(time.monotonic())


@pytest.mark.parametrize(
    ("settings", "told"),
    [({"minutes": 0.0}, "minutes=0.0.*above 0, or null"), ({"save_last": "link"}, "set it to true")],
)
def test_settings_that_cannot_be_kept_are_refused(
    tmp_path: Path, settings: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        Checkpoints(tmp_path, **settings)


def test_a_run_that_goes_on_in_its_folder_replaces_what_it_repeats(tmp_path: Path) -> None:
    folder = tmp_path / "c"

    def go_on(steps: int, resume: Path | None) -> None:
        keep = Checkpoints(folder, save_last=True, every_n_train_steps=1, save_top_k=-1, filename="{step}")
        trainer = make_trainer(tmp_path, keep, steps=steps, enable_checkpointing=True)
        trainer.fit(make_task("full"), Batches(), ckpt_path=resume, weights_only=True)

    go_on(3, None)
    (folder / "last.ckpt").unlink()  # killed before
    go_on(3, folder / "step=2.ckpt")
    assert steps(folder) == {"step=1": 1, "step=2": 2, "step=3": 3, "last": 3}


def on_a_rank(root: Path, failing: tuple[int, ...]) -> tuple[str, dict[str, int], int]:
    """With copies of the model, where the first rank alone writes; it fails."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        found = iter([0.5, 0.9, 0.7])
        monkeypatch.setattr(SmallTask, "make_metrics", lambda self: Scores(found))
        fail(monkeypatch)
        strategy = DistributedDataParallel()
        Failing.now = Failing(*failing)
        strategy.checkpoint_io = Failing.now
        keep = Checkpoints(root, monitor="val/score", mode="max", save_last=True, filename="s{step}",
                           auto_insert_metric_name=False)  # fmt: skip
        fit(make_task("full"), root, keep, steps=6, strategy=strategy, per_epoch=2,
            enable_checkpointing=True, limit_val_batches=1)  # fmt: skip
    return Path(keep.best_model_path).name, {
        Path(path).name: round(10 * float(score)) for path, score in keep.best_k_models.items()
    }, Failing.now.failed_saves  # fmt: skip


def test_all_ranks_take_back_what_the_first_could_not_write(ranks: Any, tmp_path: Path) -> None:
    first, second = ranks(on_a_rank, tmp_path, (3,))
    assert first == ("s6.ckpt", {"s6.ckpt": 7}, 1)
    assert second == ("s6.ckpt", {"s6.ckpt": 7}, 0)
    assert steps(tmp_path) == {"s6": 6, "last": 6}


def test_weights_and_biases_is_alarmed_once_for_each(tmp_path: Path) -> None:
    files, board = CheckpointFiles(), create_autospec(WandbLogger, instance=True)
    trainer = create_autospec(L.Trainer, instance=True)
    trainer.strategy, trainer.is_global_zero, trainer.loggers = Mock(checkpoint_io=files), True, [board]
    trainer.global_step = 7
    keep = Checkpoints(tmp_path)
    keep._tell(trainer)
    assert not board.experiment.alert.called
    files.failed_saves, files.last_failure = 2, "checkpoint x was not saved"
    keep._tell(trainer)
    keep._tell(trainer)
    board.log_metrics.assert_called_once_with({FAILED: 2.0}, step=7)
    (call,) = board.experiment.alert.call_args_list
    assert call.args == ("checkpoint not saved", "checkpoint x was not saved")
