"""A stream goes on in another process, with other workers: the same batches, to the last pixel."""

from __future__ import annotations

import io
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmlab.batch import Batch
from mmlab.data.image import ImageReader
from mmlab.data.lanes import Lanes
from mmlab.data.loader import Loader
from mmlab.data.order import TrainingOrder
from mmlab.data.shards import ShardSet, write_shards
from mmlab.data.stream import Stream

STEPS = 10


def load(paths: list[Path], unit: str, workers: int, first: int, count: int) -> list[Batch]:
    """Batches of a stream opened anew, from a step on."""
    shards = ShardSet(paths)
    order = TrainingOrder(
        shards.counts,
        batch_size=8,
        seed=5,
        lanes=Lanes(2, 2),
        unit=unit,
        window=7,  # type: ignore[arg-type]
    )
    image = ImageReader(24, crop_scale=(0.2, 1.0), flip=0.5, colour_jitter=0.4)
    loader = Loader(
        Stream(shards, order, (image,), seed=5), steps=count, num_workers=workers, position=lambda: first
    )
    batches = list(loader)
    loader.close()
    return batches


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    rng = np.random.default_rng(0)

    def picture() -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(buffer, "JPEG")
        return buffer.getvalue()

    samples = [{"__key__": f"{number:03d}", "jpg": picture()} for number in range(37)]
    return write_shards(samples, tmp_path_factory.mktemp("shards"), "x", max_samples=15)


@pytest.mark.parametrize("unit", ["sample", "shard"])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_another_process_goes_on_with_the_same_pixels(paths: list[Path], unit: str, workers: int) -> None:
    whole = load(paths, unit, 0, 0, STEPS)
    first = 3 + workers
    context = multiprocessing.get_context("forkserver")
    with context.Pool(1) as pool:
        keys, pixels = pool.apply(_seen, (paths, unit, first))
        # Ended by word, not by a signal: forked from the server of loaders, it hears none that stop a run.
        pool.close()
        pool.join()
    assert keys == [batch.keys for batch in whole[first:]]
    resumed = load(paths, unit, workers, first, STEPS - first)
    for expected, batch, seen in zip(whole[first:], resumed, pixels, strict=True):
        assert batch.keys == expected.keys
        assert batch.place.tolist() == expected.place.tolist()
        assert batch.image is not None
        assert expected.image is not None
        assert torch.equal(batch.image.data, expected.image.data)
        assert np.array_equal(seen, expected.image.data.numpy())


def _seen(paths: list[Path], unit: str, first: int) -> tuple[list[tuple[str, ...]], list[np.ndarray]]:
    batches = load(paths, unit, 0, first, STEPS - first)
    return [batch.keys for batch in batches], [b.image.data.numpy() for b in batches if b.image is not None]
