"""From settings to orders: mixtures, buckets and budgets, through the data module and the loader."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_stream import Words, array, same

import mmlab.data.buckets as buckets_module
from mmlab.batch import Batch
from mmlab.data.buckets import Bucketing, measure_lengths
from mmlab.data.lanes import Lanes
from mmlab.data.loader import Loader
from mmlab.data.module import ShardData
from mmlab.data.parts import Mixture, Part, Splits
from mmlab.data.plan import Loading
from mmlab.data.shards import ShardSet, write_shards
from mmlab.data.signal import SignalReader
from mmlab.data.stream import Stream

SAMPLES = {"spoken": 90, "silent": 40, "felt": 7}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sources: texts of 1 to 30 letters with signals, texts alone, signals alone."""
    folder = tmp_path_factory.mktemp("sources")
    lengths = np.random.default_rng(0).integers(1, 31, 200).tolist()

    def members(source: str, number: int) -> dict[str, Any]:
        found: dict[str, Any] = {"__key__": f"{source}{number:03d}"}
        if source != "felt":
            found["txt"] = "x" * lengths[number]
        if source != "silent":
            found["npy"] = array(np.full((9, 1), number, dtype=np.float32))
        return found

    for source, count in SAMPLES.items():
        for split, amount in (("train", count), ("val", 5)):
            write_shards(
                (members(source, n) for n in range(amount)), folder, f"{source}-{split}", max_samples=25
            )
    return folder


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMLAB_CACHE", str(tmp_path / "cache"))


def make(
    folder: Path, sources: tuple[str, ...] = tuple(SAMPLES), *, batch_size: int = 16, **loading: Any
) -> ShardData:
    mixing = {key: loading.pop(key) for key in ("per", "temperature") if key in loading}
    splits = {
        source: Splits(train=str(folder / f"{source}-train-*.tar"), val=str(folder / f"{source}-val-*.tar"))
        for source in sources
    }
    return ShardData(
        batch_size=batch_size,
        source=Mixture({name: Part(splits=split) for name, split in splits.items()}, **mixing)
        if len(sources) > 1
        else None,
        splits=Splits() if len(sources) > 1 else splits[sources[0]],
        text=Words("unused", fields=("txt",)),
        signal=SignalReader(channels=1, max_steps=4),
        loading=Loading(**({"lanes": Lanes(4, 2), "group_by": "key"} | loading)),
    )


def stream(data: ShardData, *, rank: int = 0, ranks: int = 1) -> Stream:
    shards, order = data.plan("train")
    return Stream(shards, order, data.readers, seed=1, rank=rank, ranks=ranks, group_by="key")


def joined_keys(batches: list[Batch]) -> tuple[str, ...]:
    return tuple(key for batch in batches for key in batch.keys)


SETTINGS: list[dict[str, Any]] = [
    {"per": "sample"},
    {"per": "batch", "temperature": 3.0},
    {"per": "batch", "bucketing": Bucketing("text", budget=120.0, buckets=3)},
    {"sources": ("spoken",), "bucketing": Bucketing("text", buckets=4)},
]


@pytest.mark.parametrize("arguments", SETTINGS)
def test_batches_are_the_same_for_any_ranks_workers_and_moment_of_resuming(
    folder: Path, arguments: dict[str, Any]
) -> None:
    whole = stream(make(folder, **arguments))
    expected = [whole.batch(step) for step in range(23)]
    for ranks in (2, 4):
        shares = [stream(make(folder, **arguments), rank=rank, ranks=ranks) for rank in range(ranks)]
        for step in (0, 7, 22):
            assert joined_keys([share.batch(step) for share in shares]) == expected[step].keys
    for workers, start in ((0, 5), (1, 11), (2, 14)):
        loader = Loader(
            stream(make(folder, **arguments)),
            steps=4,
            num_workers=workers,
            position=lambda start=start: start,
        )
        for step, batch in enumerate(loader, start=start):
            assert same(batch, expected[step])
            assert (batch.source is None) == (expected[step].source is None)
            if batch.source is not None:
                assert batch.source.equal(expected[step].source)
        loader.close()


def test_batches_say_which_source_each_sample_is_from(folder: Path) -> None:
    mixed = stream(make(folder, per="sample"))
    for step in range(5):
        batch = mixed.batch(step)
        assert batch.sources == ("spoken", "silent", "felt")
        assert batch.source is not None
        assert [batch.sources[n] for n in batch.source.tolist()] == [
            key.rstrip("0123456789") for key in batch.keys
        ]
    alone = stream(make(folder, ("spoken",))).batch(0)
    assert alone.source is None
    assert alone.sources == ()


def test_source_may_lack_a_modality(folder: Path) -> None:
    batch = stream(make(folder, per="sample")).batch(3)
    assert batch.text is not None
    assert batch.signal is not None
    has_text = [not key.startswith("felt") for key in batch.keys]
    has_signal = [not key.startswith("silent") for key in batch.keys]
    assert batch.text.present.tolist() == has_text
    assert batch.signal.present.tolist() == has_signal
    assert bool(batch.valid.all())


def test_batches_mixed_per_batch_are_of_one_source(folder: Path) -> None:
    mixed = stream(make(folder, per="batch"))
    seen = Counter(len({key.rstrip("0123456789") for key in mixed.batch(step).keys}) for step in range(12))
    assert seen == {1: 12}


def test_evaluation_reads_every_source_once(folder: Path) -> None:
    data = make(folder)
    shards, order = data.plan("val")
    read = Stream(shards, order, data.readers, seed=None, group_by="key")
    keys = [key for step in range(order.steps) for key in read.batch(step).keys if key]
    assert sorted(keys) == sorted(f"{source}{n:03d}" for source in SAMPLES for n in range(5))


@settings(max_examples=12, deadline=None)
@given(
    budget=st.integers(120, 900),
    buckets=st.integers(1, 8),
    ranks=st.sampled_from([1, 2, 4]),
    most=st.integers(1, 8),
)
def test_budget_holds_and_every_sample_comes_once_an_epoch(
    folder: Path, budget: int, buckets: int, ranks: int, most: int
) -> None:
    data = make(
        folder, ("spoken",), batch_size=4 * most, lanes=Lanes(ranks, 1),
        bucketing=Bucketing("text", budget=float(budget), buckets=buckets),
    )  # fmt: skip
    reading = stream(data)
    seen: Counter[str] = Counter()
    for step in range(3 * reading.order.steps):
        batch = reading.batch(step)
        assert batch.text is not None
        assert batch.text.data.numel() <= budget
        assert 1 <= len(batch) <= 4 * most
        assert len(batch) % ranks == 0
        seen.update(batch.keys)
    assert sum(seen.values()) == pytest.approx(3 * SAMPLES["spoken"], rel=0.25)
    assert max(seen.values()) <= 6


def test_buckets_save_padding(folder: Path) -> None:
    def padding(bucketing: Bucketing | None) -> float:
        reading = stream(make(folder, ("spoken",), batch_size=8, bucketing=bucketing))
        inputs = [reading.batch(step).text for step in range(3 * reading.order.steps)]
        padded = sum(text.data.numel() for text in inputs if text is not None)
        return (
            1
            - sum(int(text.length.sum()) for text in inputs if text is not None and text.length is not None)
            / padded
        )

    assert padding(Bucketing("text", buckets=6)) < 0.5 * padding(None)


def test_lengths_are_measured_once_and_go_on_where_they_were_broken_off(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = ShardSet.find("spoken-train-*.tar", folder=folder)
    reader = Words("unused", fields=("txt",))
    reads: list[tuple[int, int]] = []

    class Counting(ShardSet):
        def read(self, shard: int, sample: int) -> Any:
            reads.append((shard, sample))
            if len(reads) == 50:
                raise KeyboardInterrupt
            return super().read(shard, sample)

    counting = Counting(shards.paths)
    monkeypatch.setattr(buckets_module, "_KEPT_EVERY", 10)
    with pytest.raises(KeyboardInterrupt):
        measure_lengths(counting, reader)
    lengths = measure_lengths(counting, reader)
    assert len(reads) <= 50 + SAMPLES["spoken"] - 40
    expected = [
        len(shards.read(shard, sample).members["txt"])
        for shard, count in enumerate(shards.counts)
        for sample in range(count)
    ]
    assert lengths.tolist() == expected
    before = len(reads)
    assert measure_lengths(counting, reader).tolist() == expected
    assert len(reads) == before
    longer = Words("unused", fields=("txt",), max_length=3)
    measure_lengths(counting, longer)
    assert len(reads) == before + SAMPLES["spoken"]


def test_broken_and_absent_members_have_length_one(tmp_path: Path) -> None:
    samples = [{"__key__": "a", "npy": b"nonsense"}, {"__key__": "b", "txt": "no signal"}]
    shards = ShardSet(write_shards(samples, tmp_path, "s"))
    assert measure_lengths(shards, SignalReader(channels=1)).tolist() == [1, 1]


class TestRefusals:
    def refused(self, data: ShardData) -> str:
        with pytest.raises(ValueError, match=r"\w") as caught:
            data.plan("train")
        return str(caught.value)

    def test_budget_below_the_longest(self, folder: Path) -> None:
        said = self.refused(make(folder, ("spoken",), bucketing=Bucketing("text", budget=20.0)))
        assert "budget 20 holds no text of length 22: raise it" in said

    def test_budget_too_small_for_the_lanes(self, folder: Path) -> None:
        said = self.refused(make(folder, ("spoken",), bucketing=Bucketing("text", budget=64.0)))
        assert "leaves 2 samples for a batch of the longest, fewer than lanes.ranks = 4" in said

    def test_modality_that_is_not_read(self, folder: Path) -> None:
        said = self.refused(make(folder, ("spoken",), bucketing=Bucketing("audio")))
        assert "bucketing.by is audio, which is not read: add data.audio" in said

    def test_buckets_within_batches_of_all_sources(self, folder: Path) -> None:
        said = self.refused(make(folder, per="sample", bucketing=Bucketing("text")))
        assert "set data.source.init_args.per to batch" in said

    def test_too_few_samples(self, folder: Path) -> None:
        said = self.refused(make(folder, ("felt",)))
        assert "7 training samples are fewer than one global batch of 16: lower data.batch_size" in said

    def test_lanes_that_do_not_divide(self, folder: Path) -> None:
        said = self.refused(make(folder, lanes=Lanes(3, 1)))
        assert "lanes.ranks" in said
        assert "nearest valid" in said
