"""The lines that a log gets: at each validation and epoch, and each minute between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from small_runs import Batches, make_task, make_trainer

from mmlab.callbacks import progress
from mmlab.callbacks.progress import ProgressLines

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*is already saved during checkpointing"),
]


def lines(root: Path, capsys: pytest.CaptureFixture[str], **settings: Any) -> list[str]:
    """What a run of eight steps, four to an epoch, prints."""
    monitor = ModelCheckpoint(root, monitor="val/likeness", save_top_k=0)
    defaults: dict[str, Any] = {
        "enable_progress_bar": True, "enable_checkpointing": True, "limit_val_batches": 1,
        "log_every_n_steps": 1,
    }  # fmt: skip
    trainer = make_trainer(root, ProgressLines(), monitor, steps=8, **(defaults | settings))
    trainer.fit(make_task("full"), Batches(per_epoch=4))
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("epoch ")]


def test_each_validation_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = lines(tmp_path, capsys, val_check_interval=2, num_sanity_val_steps=1)
    assert [line.split()[3] for line in said] == ["2/8", "4/8", "6/8", "8/8"]
    assert all("train/loss" in line and "val/likeness" in line for line in said)
    assert said[-1].endswith("0:00 left")


def test_without_validation_each_epoch_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = lines(tmp_path, capsys, limit_val_batches=0)
    assert [line.split()[3] for line in said] == ["4/8", "8/8"]


def test_a_long_epoch_is_heard_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.0)
    said = lines(tmp_path, capsys, limit_val_batches=0)
    assert [line.split()[3] for line in said] == [f"{step}/8" for step in range(1, 9)]


def test_a_long_evaluation_is_heard_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.0)
    trainer = make_trainer(tmp_path, ProgressLines(), steps=1, enable_progress_bar=True, limit_val_batches=1)
    trainer.test(make_task("full"), Batches(), verbose=False)
    trainer.validate(make_task("full"), Batches(), verbose=False)
    said = capsys.readouterr().err.splitlines()
    assert "test  batch 1/1" in said
    assert "validation  batch 1/1" in said
