"""Samples -> batches: who owns which row, groups, what is skipped, workers, ranks."""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_language import tiny_language
from torch import Tensor

from mmlab.batch import NOBODY, Batch, Modality, Skip
from mmlab.data.collate import Sample, collate
from mmlab.data.lanes import Lanes
from mmlab.data.loader import Loader
from mmlab.data.order import EvaluationOrder, TrainingOrder
from mmlab.data.prompt import Prompt, PromptReader
from mmlab.data.reader import Reader
from mmlab.data.shards import ShardSet, write_shards
from mmlab.data.signal import SignalReader
from mmlab.data.stream import Known, Stream, stable_hash
from mmlab.data.text import TextReader
from mmlab.parallel.micro_batch import split


class Words(TextReader):
    """Text as the numbers of its letters: no tokenizer to build."""

    pad_id = 0  # type: ignore[assignment]

    def encode(self, text: str) -> Tensor:
        return torch.tensor([ord(letter) for letter in text])


def array(value: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, value)
    return buffer.getvalue()


def sample(number: int, **members: Any) -> dict[str, Any]:
    value = np.full((10, 1), number, dtype=np.float32) + np.arange(10, dtype=np.float32)[:, None] / 16
    return {"__key__": f"{number:04d}", "npy": array(value), "txt": f"Caption {number}"} | members


READERS: tuple[Reader, ...] = (Words("unused", fields=("txt",)), SignalReader(channels=1, max_steps=4))


def same(left: Batch, right: Batch) -> bool:
    """Whether two batches are equal to the last bit."""
    return (
        left.keys == right.keys
        and left.skips == right.skips
        and all(
            torch.equal(getattr(left, name), getattr(right, name)) for name in ("place", "valid", "group")
        )
        and [m for m, _ in left.inputs()] == [m for m, _ in right.inputs()]
        and all(
            torch.equal(a.data, b.data)
            and torch.equal(a.owner, b.owner)
            and torch.equal(a.present, b.present)
            for (_, a), (_, b) in zip(left.inputs(), right.inputs(), strict=True)
        )
    )


rows_of = st.lists(st.integers(1, 4), max_size=3)


@settings(max_examples=120, deadline=None)
@given(st.lists(st.tuples(rows_of, rows_of, st.booleans()), min_size=1, max_size=8))
def test_collate_for_every_pattern_of_presence(pattern: list[tuple[list[int], list[int], bool]]) -> None:
    samples = [
        Sample(
            key=f"k{number}",
            place=10 * number,
            group=number,
            valid=valid,
            rows={
                Modality.TEXT: tuple(torch.full((steps,), number + 1) for steps in text),
                Modality.SIGNAL: tuple(torch.full((steps, 1), float(number)) for steps in signal),
            }
            if valid
            else {},
            skip=None if valid else Skip(f"k{number}", "text: cannot decode"),
        )
        for number, (text, signal, valid) in enumerate(pattern)
    ]
    batch = collate(samples, READERS)
    assert len(batch) == len(pattern)
    assert batch.place.tolist() == [10 * number for number in range(len(pattern))]
    assert batch.valid.tolist() == [valid for *_, valid in pattern]
    assert batch.group.tolist() == [n if valid else NOBODY for n, (*_, valid) in enumerate(pattern)]
    assert [skip.key for skip in batch.skips] == [
        f"k{n}" for n, (*_, valid) in enumerate(pattern) if not valid
    ]
    assert batch.image is None
    assert batch.audio is None
    for modality, column in ((Modality.TEXT, 0), (Modality.SIGNAL, 1)):
        inputs = batch.get(modality)
        assert inputs is not None
        assert inputs.length is not None
        wanted = [entry[column] if entry[2] else [] for entry in pattern]
        assert inputs.present.tolist() == [len(steps) > 0 for steps in wanted]
        expected = [(n, length) for n, steps in enumerate(wanted) for length in (steps or [None])]
        assert inputs.owner.tolist() == [NOBODY if length is None else n for n, length in expected]
        assert inputs.data.shape[0] == len(expected)
        assert (inputs.length >= 1).all()
        owned = inputs.owner[inputs.owner != NOBODY]
        assert torch.equal(owned, owned.sort().values)
        for row, length, (number, steps) in zip(inputs.data, inputs.length.tolist(), expected, strict=True):
            if steps is not None:
                assert length == steps
                value = number + 1 if modality is Modality.TEXT else number
                assert (row[:steps] == value).all()
                assert (row[steps:] == 0).all()
        if all(len(steps) <= 1 for steps in wanted):
            assert len(inputs.data) == len(batch)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    folder = tmp_path_factory.mktemp("shards")
    return ShardSet(write_shards((sample(n) for n in range(50)), folder, "x", max_samples=20))


def training(shards: ShardSet, **settings: Any) -> Stream:
    order = TrainingOrder(shards.counts, batch_size=8, seed=3, lanes=Lanes(4, 2), unit="shard", window=5)
    return Stream(shards, order, READERS, seed=3, **settings)


class TestStream:
    def test_a_batch_is_a_function_of_its_step(self, shards: ShardSet) -> None:
        stream = training(shards)
        forward = [stream.batch(step) for step in range(20)]
        for step in random.Random(0).sample(range(20), 20):
            assert same(training(shards).batch(step), forward[step])
            assert same(stream.batch(step), forward[step])

    def test_augmentation_differs_from_epoch_to_epoch(self, shards: ShardSet) -> None:
        starts: dict[str, set[float]] = {}
        stream = training(shards)
        for step in range(40):
            batch = stream.batch(step)
            assert batch.signal is not None
            for key, row in zip(batch.keys, batch.signal.data, strict=True):
                starts.setdefault(key, set()).add(row[0, 0].item())
        assert np.mean([len(found) for found in starts.values()]) > 3

    def test_evaluation_draws_nothing_and_pads(self, shards: ShardSet) -> None:
        stream = Stream(shards, EvaluationOrder(shards.counts, batch_size=8), READERS, seed=None)
        batches = list(Loader(stream, steps=7))
        assert len(batches) == 7
        assert [key for batch in batches for key in batch.keys] == [f"{n:04d}" for n in range(50)] + [""] * 6
        last = batches[-1]
        assert last.valid.tolist() == [True] * 2 + [False] * 6
        assert last.group[2:].tolist() == [NOBODY] * 6
        assert last.place.tolist() == list(range(48, 56))
        assert last.skips == ()
        assert last.text is not None
        assert last.text.present.tolist() == [True] * 2 + [False] * 6
        assert last.signal is not None
        assert last.signal.data[0, 0, 0] == 48.0

    @pytest.mark.parametrize("workers", [1, 2])
    def test_workers_build_the_same_batches(self, shards: ShardSet, workers: int) -> None:
        stream = training(shards)
        loader = Loader(stream, steps=6, num_workers=workers)
        batches = [batch for _ in range(2) for batch in loader]
        loader.close()
        assert all(same(batch, stream.batch(step)) for step, batch in enumerate(batches))

    def test_a_loader_begins_where_it_is_told(self, shards: ShardSet) -> None:
        positions = iter([7, 10, 2])
        stream = training(shards)
        loader = Loader(stream, steps=3, position=lambda: next(positions))
        places = [batch.place[0].item() // 8 for _ in range(3) for batch in loader]
        assert places == [7, 8, 9, 10, 11, 12, 2, 3, 4]

    def test_an_iterator_that_is_never_used_costs_nothing(self, shards: ShardSet) -> None:
        loader = Loader(training(shards), steps=3, num_workers=2)
        iter(loader)
        assert loader._iterator is None


LEAVES = """
import sys
from mmlab.data.loader import Loader
from mmlab.data.order import TrainingOrder
from mmlab.data.shards import ShardSet
from mmlab.data.signal import SignalReader
from mmlab.data.stream import Stream

if __name__ == "__main__":
    shards = ShardSet.find(sys.argv[1])
    order = TrainingOrder(shards.counts, batch_size=8, seed=0)
    loader = Loader(Stream(shards, order, (SignalReader(channels=1),), seed=0), steps=6, num_workers=2)
    sys.modules["held"] = batches = iter(loader)
    print(len(next(batches).keys))
"""


def test_a_process_that_closes_no_loader_ends(tmp_path: Path) -> None:
    """As a run does whose teardown fails: workers hear no SIGTERM, and Python waits for them at its end."""
    write_shards(map(sample, range(64)), tmp_path, "x")
    script = tmp_path / "leaves.py"
    script.write_text(LEAVES, encoding="utf-8")
    ended = subprocess.run(
        [sys.executable, script, str(tmp_path / "x-*.tar")],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert ended.stdout == "8\n"


def on_a_rank(paths: list[Path]) -> list[Batch]:
    from mmlab.collectives import rank, world_size

    stream = training(ShardSet(paths), rank=rank(), ranks=world_size())
    return [stream.batch(step) for step in range(12)]


def test_two_ranks_share_the_batches_of_one(shards: ShardSet, ranks: Callable[..., list[Any]]) -> None:
    left, right = ranks(on_a_rank, list(shards.paths))
    for step, (a, b) in enumerate(zip(left, right, strict=True)):
        whole = training(shards).batch(step)
        assert same(whole.select(torch.arange(4)), a)
        assert same(whole.select(torch.arange(4, 8)), b)


class TestGroups:
    def groups(self, folder: Path, samples: list[dict[str, Any]], group_by: str) -> list[int]:
        shards = ShardSet(write_shards(samples, folder, "x", max_samples=3))
        order = EvaluationOrder(shards.counts, batch_size=len(samples))
        return Stream(shards, order, READERS, seed=None, group_by=group_by).batch(0).group.tolist()

    def test_by_caption_whatever_case_and_spaces(self, tmp_path: Path) -> None:
        texts = ["A red bird", "a  RED\nbird ", "a red dog", "straße", "STRASSE"]
        groups = self.groups(tmp_path, [sample(n, txt=text) for n, text in enumerate(texts)], "caption")
        assert groups[0] == groups[1]
        assert groups[3] == groups[4]
        assert len(set(groups)) == 3
        assert min(groups) >= 0

    def test_without_a_caption_a_sample_is_alone(self, tmp_path: Path) -> None:
        samples = [{"__key__": f"{n}", "npy": array(np.zeros((1, 1)))} for n in range(4)]
        assert len(set(self.groups(tmp_path, samples, "caption"))) == 4

    def test_by_key(self, tmp_path: Path) -> None:
        groups = self.groups(tmp_path, [sample(n % 3) for n in range(6)], "key")
        assert groups[:3] == groups[3:]
        assert len(set(groups)) == 3

    def test_by_field(self, tmp_path: Path) -> None:
        values: list[Any] = ["x", "x", "y", 1, "1", None]
        samples = [sample(n, json=json.dumps({"scene": value}).encode()) for n, value in enumerate(values)]
        groups = self.groups(tmp_path, samples, "json.scene")
        assert groups[0] == groups[1]
        assert len(set(groups)) == 5

    def test_hashes_never_change(self) -> None:
        # Groups are compared between runs' predictions, and between ranks.
        assert stable_hash("value", '["a red bird"]') == 784577751520384335


@pytest.mark.parametrize("seed", [3, None], ids=["training", "evaluation"])
def test_references_are_read_wherever_the_run_names_them(tmp_path: Path, seed: int | None) -> None:
    """A string, numbers, none, and what cannot be read."""
    members = [b'{"answers": "two"}', b'{"answers": [2, "two"]}', b"{}", b"broken"]
    samples = [sample(number, json=content) for number, content in enumerate(members)]
    shards = ShardSet(write_shards(samples, tmp_path, "x"))

    def batch(*fields: str) -> Batch:
        order = EvaluationOrder(shards.counts, batch_size=4)
        return Stream(shards, order, READERS, seed=seed, group_by="key", known=Known(fields)).batch(0)

    assert batch("json.answers").references == (("two",), ("2", "two"), (), ())
    assert [(skip.key, skip.reason) for skip in batch("json.answers").skips] == [
        ("0003", "references: invalid JSON")
    ]
    assert batch("json.nothing", "txt").references[2] == ("Caption 2",)
    assert batch("json.nothing").references == ((),) * 4
    assert batch().references == ()
    assert batch().valid.all()


@pytest.mark.parametrize("seed", [3, None], ids=["training", "evaluation"])
def test_references_and_groups_may_be_of_the_turn_that_is_asked(tmp_path: Path, seed: int | None) -> None:
    turns = [{"question": "q0", "answer": ["two", 2]}, {"question": "q1", "answer": "no"}]
    about = [{"turns": turns}, {"turns": turns[::-1]}, {"question": "q0", "answer": "one"}, {"x": 1}]
    samples = [sample(number, json=json.dumps(fields).encode()) for number, fields in enumerate(about)]
    shards = ShardSet(write_shards(samples, tmp_path, "x"))
    folder = str(tiny_language(tmp_path / "language"))
    prompt = PromptReader(folder, prompts=[Prompt("{txt}", "{txt}")], each="json.turns")
    order = EvaluationOrder(shards.counts, batch_size=4)
    fields = ("each.answer", "txt")
    batch = Stream(shards, order, [prompt], seed=seed, group_by="each.question", known=Known(fields)).batch(0)
    assert batch.references == (
        ("two", "2", "Caption 0"),
        ("no", "Caption 1"),
        ("one", "Caption 2"),
        ("Caption 3",),
    )
    first, second, third, alone = batch.group.tolist()
    assert first == third
    assert len({first, second, alone}) == 3


def test_kinds_are_read_where_the_run_names_them(tmp_path: Path) -> None:
    members = [b'{"kind": "yes/no"}', b'{"kind": [3, 4]}', b"{}", b"broken"]
    samples = [sample(number, json=content) for number, content in enumerate(members)]
    shards = ShardSet(write_shards(samples, tmp_path, "x"))
    order = EvaluationOrder(shards.counts, batch_size=4)
    batch = Stream(shards, order, READERS, seed=None, group_by="key", known=Known((), "json.kind")).batch(0)
    assert batch.kinds == ("yes-no", "3", "", "")
    assert [(skip.key, skip.reason) for skip in batch.skips] == [("0003", "kind: invalid JSON")]
    chosen = batch.select(torch.tensor([2, 0]))
    assert [chosen.kind_of(0), chosen.kind_of(1)] == ["", "yes-no"]
    assert [part.kinds for part in split(batch, 3)] == [("yes-no", "3", ""), ("",)]
    plain = Stream(shards, order, READERS, seed=None, group_by="key").batch(0)
    assert (plain.kinds, plain.kind_of(0)) == ((), "")


def test_broken_samples_are_skipped_and_counted(tmp_path: Path) -> None:
    samples = [
        sample(0),
        sample(1, txt=b"\xff"),
        sample(2, npy=array(np.full((3, 1), np.nan))),
        {"__key__": "0003", "npy": array(np.zeros((2, 1)))},  # lacks text: not broken
        sample(4, json=b"{"),
        {"__key__": "0005", "json": b"{}"},  # lacks all
    ]
    shards = ShardSet(write_shards(samples, tmp_path, "x"))
    order = EvaluationOrder(shards.counts, batch_size=6)
    batch = Stream(shards, order, READERS, seed=None, group_by="json.scene").batch(0)
    assert batch.valid.tolist() == [True, False, False, True, False, True]
    assert batch.skips == (
        Skip("0001", "text: invalid UTF-8"),
        Skip("0002", "signal: values not finite"),
        Skip("0004", "group: invalid JSON"),
    )
    assert batch.text is not None
    assert batch.text.present.tolist() == [True, False, False, False, False, False]
    assert batch.signal is not None
    assert batch.signal.present.tolist() == [True, False, False, True, False, False]
    assert batch.group[~batch.valid].tolist() == [NOBODY] * 3


def test_a_shard_that_shrank_breaks_its_samples_only(tmp_path: Path) -> None:
    (path,) = write_shards((sample(n) for n in range(4)), tmp_path, "x")
    shards = ShardSet([path])
    path.write_bytes(path.read_bytes()[:2500])
    batch = Stream(shards, EvaluationOrder(shards.counts, batch_size=4), READERS, seed=None).batch(0)
    assert batch.valid.tolist() == [True, False, False, False]
    assert {skip.reason for skip in batch.skips} == {"shard: shard is shorter than its index"}
