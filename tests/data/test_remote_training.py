"""Remote shards as a run reads them: the same batches as from disk, fetched ahead, in bounded space."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from shard_server import Shop, serve
from test_data_module import Recorder, make_trainer, signal_sample

from mmlab.data.lanes import Lanes
from mmlab.data.module import ShardData
from mmlab.data.parts import Splits
from mmlab.data.plan import Loading
from mmlab.data.remote import RemoteShards
from mmlab.data.shards import write_shards
from mmlab.data.signal import SignalReader
from mmlab.data.stream import Stream

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning")


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    """Eight shards of 16 samples."""
    monkeypatch.setenv("MMLAB_CACHE", str(tmp_path / "own"))
    write_shards((signal_sample(n) for n in range(128)), tmp_path / "disk", "train", max_samples=16)
    with serve() as shop:
        shop.files = {path.name: path.read_bytes() for path in (tmp_path / "disk").glob("*")}
        yield shop


def make(train: str, *, cache_bytes: int = 10**9, **loading: Any) -> ShardData:
    settings = {"lanes": Lanes(2, 2), "unit": "shard", "window": 16, "group_by": "key"} | loading
    return ShardData(
        batch_size=8,
        splits=Splits(train=train),
        signal=SignalReader(channels=3, max_steps=8),
        loading=Loading(remote=RemoteShards(cache_bytes=cache_bytes), **settings),
    )


def train(folder: Path, data: ShardData, *, epochs: int = 2) -> list[Any]:
    model = Recorder()
    trainer: pl.Trainer = make_trainer(folder, max_epochs=epochs)
    trainer.fit(model, data)
    return model.train_batches


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_same_shards_on_disk(tmp_path: Path, shop: Shop, workers: int) -> None:
    from_disk = train(tmp_path / "a", make(str(tmp_path / "disk" / "*.tar")))
    remote = make(f"{shop.url}/train-{{000000..000007}}.tar", num_workers=workers)
    assert train(tmp_path / "b", remote) == from_disk
    assert sorted(shop.gets()) == [f"train-{n:06d}.tar" for n in range(8)]  # each once, whoever reads it


def test_small_cache_is_enough_for_the_lanes_and_bounds_the_disk(tmp_path: Path, shop: Shop) -> None:
    size = max(len(content) for name, content in shop.files.items() if name.endswith(".tar"))
    remote = make(f"{shop.url}/train-{{000000..000007}}.tar", cache_bytes=5 * size)
    assert train(tmp_path / "b", remote, epochs=1) == train(
        tmp_path / "a", make(str(tmp_path / "disk" / "*.tar")), epochs=1
    )
    kept = [path.stat().st_size for path in (tmp_path / "own" / "shards").rglob("*.tar")]
    assert size < sum(kept) <= 5 * size


def test_cache_too_small_for_the_lanes_is_refused(tmp_path: Path, shop: Shop) -> None:
    size = max(len(content) for name, content in shop.files.items() if name.endswith(".tar"))
    with pytest.raises(ValueError, match=r"a node reads 4 lanes at a time.*cache_bytes.*fewer \(2 x 2 now\)"):
        train(tmp_path, make(f"{shop.url}/train-{{000000..000007}}.tar", cache_bytes=3 * size))


def test_remote_shards_are_permuted_whole_unless_asked_otherwise(shop: Shop) -> None:
    address = f"{shop.url}/train-{{000000..000007}}.tar"
    assert make(address, unit="auto").plan("train")[1].settings["unit"] == "shard"
    assert make(address, unit="sample").plan("train")[1].settings["unit"] == "sample"


def test_stream_announces_what_comes_up_and_forgets_what_was(shop: Shop) -> None:
    data = make(f"{shop.url}/train-{{000000..000007}}.tar")
    shards, order = data.plan("train")
    said: list[list[int]] = []
    shards.announce = said.append  # type: ignore[assignment, method-assign]
    stream = Stream(shards, order, data.readers, seed=0)
    for step in range(6):
        stream.announce(step, now=max(0, step - 2))
    of = [order.places(step).shard.tolist() for step in range(6)]
    assert said[1] == list(dict.fromkeys(of[0] + of[1]))
    assert said[5] == list(dict.fromkeys(of[3] + of[4] + of[5]))
