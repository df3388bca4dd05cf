"""The newest checkpoint is kept, whatever was best."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import Batches, SmallTask, make_task, make_trainer
from torchmetrics import Metric

from mmlab.callbacks.checkpoints import Checkpoints
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
    monkeypatch.setattr(SmallTask, "make_metrics", lambda self: Falling(scores))


class Falling(Metric):
    full_state_update = False

    def __init__(self, scores: Any) -> None:
        super().__init__()
        self.scores = scores

    def update(self, output: Any) -> None:
        """Nothing to keep."""

    def compute(self) -> dict[str, float]:
        return {"score": float(next(self.scores))}


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
