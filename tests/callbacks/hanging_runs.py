"""A run that hangs where it is told to; a program, since it is ended from within.

`python hanging_runs.py FOLDER PLACE RANK DEVICES`: PLACE is `step`, `loader`, `asleep` or
`validation`.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from mmlab import collectives
from mmlab.adaptation.policy import Policy
from mmlab.batch import Batch
from mmlab.callbacks.watchdog import Watchdog
from mmlab.callbacks.whereabouts import Whereabouts
from mmlab.data.image import ImageReader
from mmlab.data.lanes import Lanes
from mmlab.data.module import ShardData
from mmlab.data.plan import Loading
from mmlab.data.signal import SignalReader
from mmlab.models.dual_encoder import DualEncoder, Tower
from mmlab.models.encoders.image import ImageEncoder
from mmlab.models.encoders.signal import SignalEncoder
from mmlab.objectives.contrastive import InfoNCE
from mmlab.optim import Optimization
from mmlab.parallel.strategies import DistributedDataParallel
from mmlab.sources.generated import Generated
from mmlab.tasks.retrieval import RetrievalTask

AT = 3
"""The step at which it hangs."""


class SlowReader(SignalReader):
    """Hangs when it reads what comes at a step; as a file on a server that does not answer."""

    hangs_at: int | None = None
    reads = 0

    def read(self, *arguments: Any, **named: Any) -> Any:
        self.reads += 1
        if self.hangs_at is not None and self.reads > self.hangs_at:
            never_answers()
        return super().read(*arguments, **named)


def never_answers() -> None:
    while True:
        time.sleep(0.1)


class Hang(Callback):
    def __init__(self, place: str, rank: int) -> None:
        self.place = place
        self.rank = rank

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        if trainer.global_step == AT and collectives.rank() == self.rank:
            if self.place == "step":
                never_answers()
            if self.place == "asleep":
                print("asleep", flush=True)
                time.sleep(1000)

    def on_validation_batch_start(self, *_: Any) -> None:
        if self.place == "validation":
            time.sleep(1.0)


def main(folder: Path, place: str, rank: int, devices: int) -> None:
    signal = SlowReader(channels=3)
    signal.hangs_at = AT * 8 + 1 if place == "loader" else None
    data = ShardData(
        batch_size=8, source=Generated(train=64, val=48, test=8), image=ImageReader(32), signal=signal,
        loading=Loading(group_by="key", lanes=Lanes(2, 2), num_workers=1 if place == "loader" else 0),
    )  # fmt: skip
    torch.manual_seed(0)
    task = RetrievalTask(
        DualEncoder(
            image=Tower(ImageEncoder("test_vit", pretrained=False, image_size=32), dim=8),
            signal=Tower(SignalEncoder(3, dim=8, num_layers=1), dim=8),
        ),
        objective=InfoNCE(), optimization=Optimization(partial(torch.optim.SGD, lr=0.01)),
        adaptation=Policy("full"),
    )  # fmt: skip
    # Several ranks wait for each other at the start, the first step of one may be another's tenth second.
    dog = Watchdog(minutes=0.05, first=1.0, abort=True)
    dog.on_hang = lambda reason: (folder / f"told-{collectives.rank()}").write_text(reason)  # type: ignore[func-returns-value, assignment, return-value]
    trainer = L.Trainer(
        accelerator="cpu", devices=devices, strategy=DistributedDataParallel() if devices > 1 else "auto",
        max_steps=5, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=folder,
        val_check_interval=5, check_val_every_n_epoch=None,
        callbacks=[Whereabouts(folder), dog, Hang(place, rank)],
    )  # fmt: skip
    trainer.fit(task, data)
    print("done", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
