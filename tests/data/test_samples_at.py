"""The samples of a step are named with their shards, without reading them."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from mmlab.data.lanes import Lanes
from mmlab.data.module import ShardData
from mmlab.data.parts import Splits
from mmlab.data.plan import Loading
from mmlab.data.shards import write_shards
from mmlab.data.signal import SignalReader


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """101 training samples in 4 shards, 21 to validate."""
    folder = tmp_path_factory.mktemp("shards")
    data = io.BytesIO()
    np.save(data, np.zeros((4, 2), dtype=np.float32))
    for split, numbers in (("train", range(101)), ("val", range(1000, 1021))):
        samples = ({"__key__": f"{number:05d}", "npy": data.getvalue()} for number in numbers)
        write_shards(samples, folder, split, max_samples=30)
    return folder


def set_up(folder: Path) -> ShardData:
    data = ShardData(
        batch_size=8,
        splits=Splits(train=str(folder / "train-*.tar"), val=str(folder / "val-*.tar")),
        signal=SignalReader(channels=2),
        loading=Loading(group_by="key", lanes=Lanes(4, 2)),
    )
    data.setup("fit")
    return data


def keys_of(shard: str) -> set[str]:
    with tarfile.open(shard) as tar:
        return {name.partition(".")[0] for name in tar.getnames()}


def test_the_samples_of_a_step_are_named_with_their_shards(folder: Path) -> None:
    data = set_up(folder)
    for step, batch in zip(range(3), data.train_dataloader(), strict=False):
        named = data.samples_at("train", step)
        assert tuple(key for _, key in named) == batch.keys
        assert all(key in keys_of(shard) for shard, key in named)


def test_padding_is_no_sample(folder: Path) -> None:
    named = set_up(folder).samples_at("val", 2)
    assert [key for _, key in named] == [f"{number:05d}" for number in range(1016, 1021)]


def test_what_is_left_out_is_not_named(folder: Path) -> None:
    data = set_up(folder)
    third = data.samples_at("train", 2)
    data.skips.leave_out(0, 2)
    assert data.samples_at("train", 0) == third
