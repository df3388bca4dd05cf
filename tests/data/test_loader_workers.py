"""Workers of a loader hear no signal that tells a run to stop, and end when the loader is closed."""

from __future__ import annotations

import io
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from mmlab.data.lanes import Lanes
from mmlab.data.module import ShardData
from mmlab.data.parts import Splits
from mmlab.data.plan import Loading
from mmlab.data.shards import write_shards
from mmlab.data.signal import SignalReader


@pytest.mark.slow
def test_signals_to_the_process_group_leave_the_workers_alone(tmp_path: Path) -> None:
    array = io.BytesIO()
    np.save(array, np.zeros((4, 2), dtype=np.float32))
    write_shards(
        ({"__key__": f"{number:05d}", "npy": array.getvalue()} for number in range(400)), tmp_path, "train"
    )
    data = ShardData(
        batch_size=8,
        splits=Splits(train=str(tmp_path / "train-*.tar")),
        signal=SignalReader(channels=2),
        loading=Loading(group_by="key", lanes=Lanes(4, 2), num_workers=2),
    )
    data.setup("fit")
    loader = data.train_dataloader()
    batches = iter(loader)
    next(batches)
    workers = list(loader._iterator._workers)  # type: ignore[union-attr]
    servers = {
        int(Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[1]) for worker in workers
    }
    for pid in {*servers, *(worker.pid for worker in workers)}:
        for number in (signal.SIGTERM, signal.SIGUSR1):
            os.kill(pid, number)
    assert len([next(batches) for _ in range(45)]) == 45
    assert all(worker.is_alive() for worker in workers)
    loader.close()
    assert not any(worker.is_alive() for worker in workers)
