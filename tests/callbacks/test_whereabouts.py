"""Where a rank says it is: how far training is, in evaluation too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import Callback
from small_runs import Batches, make_task, make_trainer

from mmlab.callbacks.whereabouts import Whereabouts
from mmlab.runs.rank_page import Page, read_pages

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*is already saved during checkpointing"),
]


class Reader(Callback):
    """Reads the page in the middle of each batch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: list[Page] = []

    def look(self) -> None:
        self.seen += read_pages(self.folder)

    def on_before_zero_grad(self, *_: Any) -> None:
        self.look()

    def on_validation_batch_end(self, *_: Any) -> None:
        self.look()


def places(seen: list[Page]) -> list[tuple[str, int, int]]:
    return [(page.phase, page.step, page.trained) for page in seen]


def test_evaluation_knows_how_far_training_is(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    trainer: L.Trainer = make_trainer(
        tmp_path, Whereabouts(tmp_path), reader, steps=4, limit_val_batches=1, check_val_every_n_epoch=2
    )
    trainer.fit(make_task("full"), Batches())
    assert places(reader.seen) == [
        ("train", 0, 0), ("train", 1, 1), ("val", 0, 2), ("train", 2, 2), ("train", 3, 3), ("val", 0, 4)
    ]  # fmt: skip
    assert reader.seen[2].within == " in batch 0 of val"
    assert reader.seen[0].within == ""
    # One that goes on, too.
    path = tmp_path / "last.ckpt"
    trainer.save_checkpoint(path)
    reader = Reader(tmp_path)
    trainer = make_trainer(tmp_path, Whereabouts(tmp_path), reader, steps=6, limit_val_batches=1)
    trainer.fit(make_task("full"), Batches(), ckpt_path=path, weights_only=True)
    assert places(reader.seen) == [("train", 4, 4), ("val", 0, 5), ("train", 5, 5), ("val", 0, 6)]
