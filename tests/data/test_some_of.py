"""A share of the training samples: how many, which, the same every time, part of a larger share."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from mmlab.data.module import ShardData
from mmlab.data.parts import Mixture, Part, Splits
from mmlab.data.plan import Loading
from mmlab.data.shards import ShardSet, write_shards
from mmlab.data.signal import SignalReader
from mmlab.data.some_of import SomeOf
from mmlab.sources.generated import Generated


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Three shards of 20, 20 and 3 samples."""
    folder = tmp_path_factory.mktemp("shards")
    for number, count in enumerate((20, 20, 3)):
        samples = ({"__key__": f"s{number}_{n}", "txt": f"{number} {n}".encode()} for n in range(count))
        write_shards(samples, folder, f"train{number}")
    return ShardSet.find("train*.tar", folder=folder)


def keys(samples: SomeOf) -> set[str]:
    return {samples.key(shard, n) for shard, count in enumerate(samples.counts) for n in range(int(count))}


@pytest.mark.parametrize(("share", "count"), [(0.1, 4), (0.5, 22), (0.001, 1), (1.0, 43)])
def test_as_many_as_the_share_says(shards: ShardSet, share: float, count: int) -> None:
    some = SomeOf(shards, share=share, seed=0)
    assert int(some.counts.sum()) == count
    assert len(keys(some)) == count
    for shard, chosen in enumerate(some.counts):
        for n in range(int(chosen)):
            sample = some.read(shard, n)
            assert sample.key == some.key(shard, n)
            assert sample.members["txt"].decode().replace(" ", "_") == sample.key.removeprefix("s")


def test_a_smaller_share_is_part_of_a_larger_one_and_seeds_differ(shards: ShardSet) -> None:
    tenth, half = (keys(SomeOf(shards, share=share, seed=3)) for share in (0.1, 0.5))
    assert tenth < half
    assert keys(SomeOf(shards, share=0.5, seed=4)) != half
    drawn = Counter(key for seed in range(200) for key in keys(SomeOf(shards, share=0.5, seed=seed)))
    assert len(drawn) == 43
    assert min(drawn.values()) > 70
    assert max(drawn.values()) < 135


def test_another_choice_has_another_digest(shards: ShardSet) -> None:
    chosen = [(0.5, 0), (0.5, 1), (0.25, 0)]
    digests = {SomeOf(shards, share=share, seed=seed).digest for share, seed in chosen}
    assert len(digests | {shards.digest}) == 4
    assert SomeOf(shards, share=0.5, seed=0).digest in digests


def test_training_sees_these_samples_only_and_evaluation_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMLAB_CACHE", str(tmp_path))
    source = Generated(train=40, val=6, test=2)
    data = ShardData(
        batch_size=4,
        source=source,
        splits=Splits(train_share=0.2, share_seed=1),
        signal=SignalReader(channels=3),
        loading=Loading(group_by="key"),
    )
    data.prepare_data()
    data.setup("fit")
    batches = list(data.train_dataloader())
    seen = {key for batch in batches for key in batch.keys}
    whole = ShardSet.find("train-*.tar", folder=source.prepare())
    assert seen == keys(SomeOf(whole, share=0.2, seed=1))
    assert len(seen) == 8
    assert sum(int(batch.valid.sum()) for batch in data.val_dataloader()) == 6
    data.teardown("fit")


def test_each_source_of_a_mixture_has_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMLAB_CACHE", str(tmp_path))
    parts = {
        "few": Part(Generated(train=40, val=2, test=2), Splits(train_share=0.1)),
        "all": Part(Generated(train=20, val=2, test=2, seed=1)),
    }
    data = ShardData(batch_size=4, source=Mixture(parts), signal=SignalReader(channels=3))
    samples, _ = data.plan("train")
    assert int(samples.counts.sum()) == 4 + 20


def test_a_mixture_has_no_share_of_its_own() -> None:
    mixture = Mixture({"one": Part(Generated())})
    with pytest.raises(ValueError, match=r"train_share=0\.1: a mixture has none of its own: set"):
        ShardData(
            batch_size=4, source=mixture, splits=Splits(train_share=0.1), signal=SignalReader(channels=3)
        )


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5])
def test_what_is_no_share_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=rf"train_share={share}: it is a share of the training samples"):
        Splits(train_share=share)
