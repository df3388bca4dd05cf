"""Features of frozen encoders: written once, read in place of the raw rows, refused where they do not fit."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tars import contents
from torch import Tensor, nn

from mmlab.batch import Batch, Input, Modality
from mmlab.commands.features import Work, plan, write_split
from mmlab.data.decode import BrokenMember
from mmlab.data.feature_writer import FeatureWriter
from mmlab.data.features import Features
from mmlab.data.module import ShardData
from mmlab.data.order import EvaluationOrder, TrainingOrder
from mmlab.data.parts import Splits
from mmlab.data.shards import ShardSet, write_shards
from mmlab.data.signal import SignalReader
from mmlab.data.stream import Stream
from mmlab.data.text import TextReader
from mmlab.data.tokens import ABOUT, FeatureReader, member_name, pack
from mmlab.models.encoders.encoder import Encoded, Encoder
from mmlab.models.fingerprint import fingerprint


class Words(TextReader):
    """Text as the numbers of its letters: no tokenizer to build."""

    pad_id = 0  # type: ignore[assignment]

    def encode(self, text: str) -> Tensor:
        return torch.tensor([ord(letter) % 50 for letter in text])

    def prepare(self) -> None: ...


class Letters(Encoder):
    """A table of letters; it counts the rows that it encodes, and can be made to stop."""

    modality = Modality.TEXT
    dim = 6

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(torch.randn(50, self.dim, generator=generator) * scale, requires_grad=False)
        self._rows, self._stop_at = 0, 10**9

    def encode(self, inputs: Input) -> Encoded:
        self._rows += len(inputs.data)
        if self._rows > self._stop_at:
            raise KeyboardInterrupt
        assert inputs.mask is not None
        return Encoded(self.table[inputs.data], inputs.mask)


class Steps(Encoder):
    """A linear layer on every step."""

    modality = Modality.SIGNAL
    dim = 4

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(1, self.dim, generator=generator), requires_grad=False)

    def encode(self, inputs: Input) -> Encoded:
        assert inputs.mask is not None
        return Encoded(inputs.data @ self.weight, inputs.mask)


def array(value: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, value)
    return file.getvalue()


def sample(number: int, **members: Any) -> dict[str, Any]:
    """Number modulo 4 captions; every third sample has no signal."""
    made: dict[str, Any] = {"__key__": f"{number:04d}", "json": json.dumps({"c": captions(number)}).encode()}
    if number % 3 != 2:
        made["npy"] = array(np.arange(number % 5 + 4, dtype=np.float32)[:, None] + number)
    return made | members


def captions(number: int) -> list[str]:
    return [f"{'abcdef'[: turn + 2]} {number}" for turn in range(number % 4)]


class Made:
    """Data of two splits, its encoders, and where its features go."""

    def __init__(self, folder: Path, samples: Sequence[dict[str, Any]], **text: Any) -> None:
        self.folder = folder / "features"
        paths = write_shards(samples, folder / "raw", "train", max_samples=8)
        self.letters = Letters()
        self.encoders: Mapping[Modality, Encoder] = {Modality.TEXT: self.letters, Modality.SIGNAL: Steps()}
        self.readers = (Words("x", fields=("json.c",), **text), SignalReader(channels=1))
        self.raw = ShardSet(paths)

    def write(self, *, splits: Sequence[str] = ("train",), **wanted: Any) -> Features:
        text, signal = self.readers
        data = ShardData(batch_size=4, splits=Splits(train="unused"), text=text, signal=signal)
        work = Work(data, self.encoders, torch.device("cpu"), dict.fromkeys(splits, self.raw))
        with FeatureWriter.open(self.folder, plan(work, **wanted)) as writer:
            for split in splits:
                write_split(work, writer, split)
            return writer.finish()

    def batches(self, features: Features | None, *, split: str = "train", steps: int = 6) -> Iterator[Batch]:
        samples, readers = self.raw, self.readers
        if features is not None:
            samples, readers = features.join(split, samples), features.readers(readers)  # type: ignore[assignment]
        order: Any = EvaluationOrder(samples.counts, batch_size=5)
        if split == "train":
            order = TrainingOrder(samples.counts, batch_size=4, seed=0)
        stream = Stream(samples, order, readers, seed=0 if split == "train" else None)
        return (stream.batch(step) for step in range(steps))


def same(left: Batch, right: Batch, encoders: Mapping[Modality, Encoder], *, tolerance: float) -> None:
    """Whether two batches lead to the same tokens; the first is raw, the second read from features."""
    assert left.keys == right.keys
    assert left.skips == right.skips
    assert torch.equal(left.group, right.group)
    assert torch.equal(left.valid, right.valid)
    for (modality, raw), (_, made) in zip(left.inputs(), right.inputs(), strict=True):
        assert made.encoded
        assert torch.equal(raw.owner, made.owner)
        assert torch.equal(raw.present, made.present)
        wanted, given = encoders[modality](raw), encoders[modality](made)
        assert given.tokens.dtype == torch.float32
        owned = raw.owner >= 0
        mask = wanted.mask[owned]
        assert torch.equal(mask.sum(1), given.mask[owned].sum(1))
        torch.testing.assert_close(
            given.tokens[owned][given.mask[owned]], wanted.tokens[owned][mask], rtol=tolerance, atol=1e-6
        )


@pytest.mark.parametrize(("precision", "tolerance"), [("float16", 2**-11), ("float32", 0.0)])
@pytest.mark.parametrize(("split", "every"), [("train", False), ("val", False), ("val", True)])
def test_features_stand_for_what_encoders_give(
    tmp_path: Path, split: str, every: bool, precision: str, tolerance: float
) -> None:
    made = Made(tmp_path, [sample(number) for number in range(26)], every=every)
    features = made.write(splits=[split], precision=precision)
    pairs = zip(made.batches(None, split=split), made.batches(features, split=split), strict=True)
    for left, right in pairs:
        same(left, right, made.encoders, tolerance=tolerance)


def test_shards_mirror_the_raw_ones_and_hold_no_padding(tmp_path: Path) -> None:
    made = Made(tmp_path, [sample(number) for number in range(26)])
    features = made.write()
    shards = ShardSet(sorted(features.folder.glob("*.tar")))
    assert [path.name for path in shards.paths] == [f"train-{n:06d}.tar" for n in range(4)]
    assert shards.counts.tolist() == made.raw.counts.tolist()
    for (key, members), (raw_key, _) in zip(contents(shards), contents(made.raw), strict=True):
        assert key == raw_key
        texts = captions(int(key))
        about = json.loads(members[ABOUT])
        assert about.get("text", [[]]) == [[len(text) for text in texts]]
        if texts:
            tokens = np.load(io.BytesIO(members["text.tokens.npy"]))
            assert tokens.dtype == np.float16
            assert tokens.shape == (sum(map(len, texts)), Letters.dim)


def test_what_cannot_be_read_is_skipped_for_the_same_reason(tmp_path: Path) -> None:
    samples = [
        sample(4),
        sample(1, npy=array(np.full((3, 1), np.nan))),
        sample(2, json=b"{"),
        sample(3, npy=b"no array"),
        {"__key__": "0009", "txt": b"lacks all"},
    ]
    made = Made(tmp_path, samples)
    features = made.write(splits=["val"])
    (left,), (right,) = (made.batches(f, split="val", steps=1) for f in (None, features))
    assert len(left.skips) == 3
    same(left, right, made.encoders, tolerance=2**-11)


def test_repeated_keys_and_empty_shards_keep_their_places(tmp_path: Path) -> None:
    made = Made(tmp_path, [sample(number % 2 + 1) for number in range(16)])
    (empty,) = write_shards([sample(0)], tmp_path / "raw", "empty")
    empty.write_bytes(bytes(10240))
    made.raw = ShardSet([made.raw.paths[0], empty, made.raw.paths[1]])
    assert made.raw.counts.tolist() == [8, 0, 8]
    features = made.write(splits=["val"])
    for left, right in zip(made.batches(None, split="val"), made.batches(features, split="val"), strict=True):
        same(left, right, made.encoders, tolerance=2**-11)


class TestVariants:
    def test_training_draws_one_and_evaluation_the_plain_one(self, tmp_path: Path) -> None:
        made = Made(tmp_path, [sample(number) for number in range(16)])
        made.readers = (made.readers[0], SignalReader(channels=1, max_steps=2))
        features = made.write(splits=["train", "val"], variants=5)
        seen: dict[str, set[tuple[float, ...]]] = {}
        for batch in made.batches(features, steps=200):
            assert batch.signal is not None
            for key, tokens in zip(batch.keys, batch.signal.data, strict=True):
                seen.setdefault(key, set()).add(tuple(tokens[0].tolist()))
        # Sample 3 has 7 steps, thus 6 places to cut; sample 15 has 4, thus 3; sample 2 has none.
        assert 2 <= len(seen["0003"]) <= 5
        assert len(seen["0015"]) <= 3
        (plain,) = made.batches(features, split="val", steps=1)
        (raw,) = made.batches(None, split="val", steps=1)
        same(raw, plain, made.encoders, tolerance=2**-11)

    def test_variants_that_are_alike_are_stored_once(self, tmp_path: Path) -> None:
        made = Made(tmp_path, [sample(7)])
        features = made.write(variants=3)
        ((_, members),) = contents(ShardSet([features.folder / "train-000000.tar"]))
        about = json.loads(members[ABOUT])
        assert len(about["text"]) == 1
        assert len(about["text"][0]) == 3
        assert len(about["signal"]) == 1

    def test_the_same_seed_gives_the_same_bytes(self, tmp_path: Path) -> None:
        found = []
        for name in "ab":
            made = Made(tmp_path / name, [sample(number) for number in range(16)])
            made.readers = (made.readers[0], SignalReader(channels=1, max_steps=2))
            folder = made.write(variants=2).folder
            found.append([path.read_bytes() for path in sorted(folder.glob("*.tar"))])
        assert found[0] == found[1]


rows = st.lists(st.one_of(st.integers(1, 5), st.just("cannot decode")), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(st.lists(rows, min_size=1, max_size=3), st.booleans(), st.sampled_from(["float16", "float32"]))
def test_any_rows_come_back(variants: list[list[int | str]], every: bool, precision: Any) -> None:
    total = sum(row for variant in variants for row in variant if isinstance(row, int))
    tokens = np.arange(total * 2, dtype=precision).reshape(total, 2)
    members = pack({Modality.TEXT: variants}, {Modality.TEXT: tokens})
    assert min(members) == ABOUT
    reader = FeatureReader(Words("x", every=every), dim=2, precision=precision)
    wanted = variants[0] if every else variants[0][:1]
    if "cannot decode" in wanted:
        with pytest.raises(BrokenMember, match=r"^cannot decode$"):
            reader.read(members, None)
        return
    read = reader.read(members, None)
    assert [len(row) for row in read] == wanted
    assert np.array_equal(torch.cat(read).numpy(), tokens[: sum(len(row) for row in read)])


class Trap:
    """Makes a folder where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


class TestHostileMembers:
    def read(self, about: bytes, tokens: bytes | None) -> None:
        members = {ABOUT: about} | ({} if tokens is None else {member_name(Modality.SIGNAL): tokens})
        FeatureReader(SignalReader(channels=1), dim=4, precision="float16").read(members, None)

    def test_nothing_is_unpickled(self, tmp_path: Path) -> None:
        file = io.BytesIO()
        np.save(file, np.array([[Trap(tmp_path / "trapped")] * 4]), allow_pickle=True)
        with pytest.raises(BrokenMember, match="not an array of numbers"):
            self.read(b'{"signal":[[1]]}', file.getvalue())
        assert not (tmp_path / "trapped").exists()

    @pytest.mark.parametrize(
        ("tokens", "reason"),
        [
            (None, "missing"),
            (b"", "cannot decode"),
            (array(np.zeros((3, 5), np.float16)), "another shape"),
            (array(np.zeros((3, 4), np.int16)), "another shape"),
            (array(np.zeros((3, 4), ">f2")), "another shape"),
            (array(np.zeros((4, 3), np.float16).T), "another shape"),
            (array(np.zeros(12, np.float16)), "another shape"),
            (array(np.zeros((3, 4), np.float16))[:-1], "cut off"),
            (array(np.zeros((2, 4), np.float16)), "cut off"),
            (array(np.full((3, 4), np.nan, np.float16)), "not finite"),
            (array(np.zeros((1, 4), np.float16)).replace(b"(1, 4)", b"(9**9, 4)"), "cannot decode"),
        ],
    )
    def test_broken_tokens_are_refused(self, tokens: bytes | None, reason: str) -> None:
        with pytest.raises(BrokenMember, match=reason):
            self.read(b'{"signal":[[3]]}', tokens)

    @pytest.mark.parametrize(
        "about",
        ["", "[]", "7", '{"signal":{}}', '{"signal":[{}]}', '{"signal":[[]]}', '{"signal":[[0]]}', "\x00",
         '{"signal":[[-3]]}', '{"signal":[[1.5]]}', '{"signal":[[true]]}', '{"signal":"x"}', "[" * 100_000],
    )  # fmt: skip
    def test_broken_accounts_are_refused(self, about: str) -> None:
        with pytest.raises(BrokenMember, match="damaged"):
            self.read(about.encode(), array(np.zeros((3, 4), np.float16)))

    def test_a_sample_without_an_account_is_not_taken_for_one_without_the_modality(self) -> None:
        reader = FeatureReader(SignalReader(channels=1), dim=4, precision="float16")
        with pytest.raises(BrokenMember, match="features missing"):
            reader.read({}, None)
        assert reader.read({ABOUT: b"{}"}, None) == ()


def test_values_beyond_float16_are_refused_with_the_remedy(tmp_path: Path) -> None:
    made = Made(tmp_path, [sample(number) for number in range(4)])
    made.encoders = {**made.encoders, Modality.TEXT: Letters(scale=1e6)}
    with pytest.raises(ValueError, match=r"Letters gives values up to .*--precision float32"):
        made.write()
    assert made.write(precision="float32").modalities == (Modality.TEXT, Modality.SIGNAL)


def test_fingerprints_are_those_of_the_encoders(tmp_path: Path) -> None:
    made = Made(tmp_path, [sample(number) for number in range(4)])
    features = made.write()
    features.check_encoders({m: fingerprint(encoder) for m, encoder in made.encoders.items()})
    features.check_encoders({Modality.IMAGE: None})
    with pytest.raises(ValueError, match="encoder of text changed; encoder of signal is trained"):
        features.check_encoders({Modality.TEXT: fingerprint(Letters(2.0)), Modality.SIGNAL: None})
