"""Sounds, text, other signals and JSON fields: against other libraries, and what is broken."""

from __future__ import annotations

import io
import json
import pickle
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmlab.batch import Modality
from mmlab.data import decode
from mmlab.data.audio import AudioReader
from mmlab.data.decode import BrokenMember
from mmlab.data.fields import read_field
from mmlab.data.signal import SignalReader
from mmlab.data.text import TextReader


def tone(seconds: float, rate: int, hertz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def sound(wave: np.ndarray, rate: int, format: str = "wav", subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate, format=format, subtype=subtype)
    return buffer.getvalue()


class TestAudio:
    @settings(max_examples=30, deadline=None)
    @given(
        st.lists(st.integers(100, 30_000), min_size=1, max_size=3), st.sampled_from([8000, 11_025, 44_100]),
        st.sampled_from([None, 0.3, 1.0]), st.integers(0, 99),
    )  # fmt: skip
    def test_no_row_is_longer_than_the_headers_tell(
        self, lengths: list[int], rate: int, most: float | None, seed: int
    ) -> None:
        reader = AudioReader(16_000, max_seconds=most, members=["*.wav"])
        members = {f"{n}.wav": sound(tone(steps / rate, rate), rate) for n, steps in enumerate(lengths)}
        rows = reader.read(members, random.Random(seed)) + AudioReader(
            16_000, max_seconds=most, members=["*.wav"], every=True
        ).read(members, None)
        longest = max(len(row) for row in rows)
        assert longest <= reader.steps(members) <= longest + 2

    @pytest.mark.parametrize(
        ("format", "tolerance"), [("wav", 1e-3), ("flac", 1e-3), ("ogg", 0.02), ("mp3", 0.02)]
    )
    @pytest.mark.parametrize("rate", [16_000, 22_050, 48_000])
    def test_a_tone_stays_a_tone(self, format: str, tolerance: float, rate: int) -> None:
        (wave,) = AudioReader().read({format: sound(tone(1.0, rate), rate, format)}, None)
        assert wave.dtype == torch.float32
        assert abs(len(wave) - 16_000) <= (2400 if format == "mp3" else 1)  # mp3 pads with silence
        # The analytic tone at the new rate, whatever the phase, away from the ends.
        middle = wave[4000:12_000].double()
        phase = 2 * torch.pi * 440 * torch.arange(8000, dtype=torch.float64) / 16_000
        basis = torch.stack([phase.sin(), phase.cos()], 1)
        fit = torch.linalg.lstsq(basis, middle[:, None]).solution
        assert abs(fit.norm().item() - 0.5) < tolerance
        assert (basis @ fit - middle[:, None]).abs().max() < 2 * tolerance

    def test_channels_are_averaged(self) -> None:
        left, right = tone(0.1, 16_000), tone(0.1, 16_000, 900.0)
        (wave,) = AudioReader().read(
            {"wav": sound(np.stack([left, right], 1), 16_000, subtype="FLOAT")}, None
        )
        np.testing.assert_allclose(wave, (left + right) / 2, atol=1e-6)

    def test_values_stay_within_one(self) -> None:
        (wave,) = AudioReader().read({"wav": sound(3 * tone(0.1, 8000), 8000, subtype="FLOAT")}, None)
        assert wave.abs().max() == 1.0

    def test_long_sounds_are_cut(self) -> None:
        ramp = np.linspace(-1, 1, 32_000)
        data = {"wav": sound(ramp, 16_000, subtype="FLOAT")}
        reader = AudioReader(max_seconds=0.5)
        (beginning,) = reader.read(data, None)
        np.testing.assert_allclose(beginning, ramp[:8000], atol=1e-6)
        starts = []
        for seed in range(300):
            (wave,) = reader.read(data, random.Random(seed))
            assert len(wave) == 8000
            starts.append((wave[0].item() + 1) / 2 * 32_000)
        assert min(starts) < 1000
        assert 23_000 < max(starts) <= 24_000
        assert abs(np.mean(starts) - 12_000) < 1500

    def test_length_after_resampling_is_limited(self) -> None:
        (wave,) = AudioReader(max_seconds=0.5).read({"flac": sound(tone(3, 44_100), 44_100, "flac")}, None)
        assert len(wave) == 8000

    def test_members_by_pattern_in_order_of_preference(self) -> None:
        lengths = {"fr": 0.1, "de": 0.2, "en": 0.3}
        members = {f"{name}.wav": sound(tone(length, 16_000), 16_000) for name, length in lengths.items()}
        reader = AudioReader(members=("en.wav", "*.wav"))
        assert reader.matching(members) == ["en.wav", "de.wav", "fr.wav"]
        (first,) = reader.read(members, None)
        assert torch.equal(first, reader.decode(members["en.wav"]))
        every = AudioReader(members=("en.wav", "*.wav"), every=True).read(members, None)
        assert len(every) == 3
        chosen = Counter(len(reader.read(members, random.Random(seed))[0]) for seed in range(300))
        assert len(chosen) == 3
        assert min(chosen.values()) > 60
        assert reader.read({"txt": b""}, None) == ()
        assert not reader.finds({"txt": b"", "wav": b""})

    @pytest.mark.parametrize(
        ("wave", "reason"),
        [([], "empty sound"), ([0.0, np.nan], "values not finite"), ([np.inf], "values not finite")],
    )
    def test_odd_values(self, wave: list[float], reason: str) -> None:
        with pytest.raises(BrokenMember, match=f"^{reason}$"):
            AudioReader().read({"wav": sound(np.array(wave), 16_000, subtype="FLOAT")}, None)

    def test_no_sound(self) -> None:
        good = sound(tone(0.5, 16_000), 16_000, "flac")
        for data in (b"", b"RIFF", bytes(1000), good[:60]):
            with pytest.raises(BrokenMember, match=r"^(cannot decode|empty sound)$"):
                AudioReader().read({"flac": data}, None)

    @pytest.mark.parametrize("kept", [44, 1000, -1])
    def test_a_wav_that_is_cut_off(self, kept: int) -> None:
        whole = sound(tone(2.0, 16_000), 16_000)
        assert len(AudioReader(max_seconds=0.01).read({"wav": whole}, None)[0]) == 160
        with pytest.raises(BrokenMember, match=r"^sound cut off$"):
            AudioReader(max_seconds=0.01).read({"wav": whole[:kept]}, None)

    @pytest.mark.parametrize("size", [0x7FFF_F000, 0x8000_0000, 0xFFFF_FFFF])
    def test_a_wav_from_a_pipe_is_whole(self, size: int) -> None:
        whole = sound(tone(1.0, 16_000), 16_000)
        piped = whole[:40] + size.to_bytes(4, "little") + whole[44:]
        read, expected = (AudioReader().read({"wav": data}, None)[0] for data in (piped, whole))
        assert torch.equal(read, expected)

    @pytest.mark.parametrize("padding", [b"", b"\0"])
    def test_a_wav_of_odd_chunks_is_whole(self, padding: bytes) -> None:
        whole = sound(tone(1.0, 8000)[:7999], 8000, subtype="PCM_U8")[: 44 + 7999]
        comment = b"note" + (3).to_bytes(4, "little") + b"odd\0"
        for data in (whole + padding, whole[:36] + comment + whole[36:] + padding):
            assert len(AudioReader(8000).read({"wav": data}, None)[0]) == 7999
            with pytest.raises(BrokenMember, match=r"^sound cut off$"):
                AudioReader(8000).read({"wav": data[: -1 - len(padding)]}, None)

    def test_a_wav_without_sound_in_countless_chunks(self) -> None:
        data = sound(tone(0.1, 8000), 8000)[:36] + b"note\0\0\0\0" * 2000
        with pytest.raises(BrokenMember, match=r"^cannot decode$"):
            AudioReader().read({"wav": data}, None)

    def test_too_long_is_said_before_decoding(self, monkeypatch: pytest.MonkeyPatch) -> None:
        hours = sound(np.zeros(3700 * 1000), 1000, "flac")
        with pytest.raises(BrokenMember, match=r"^sound too long$"):
            AudioReader(max_seconds=1.0).read({"flac": hours}, None)
        monkeypatch.setattr(decode, "_MAX_VALUES", 1000)
        with pytest.raises(BrokenMember, match=r"^sound too long$"):
            AudioReader(max_seconds=None).read({"wav": sound(tone(1, 16_000), 16_000)}, None)
        AudioReader(max_seconds=0.01).read({"wav": sound(tone(1, 16_000), 16_000)}, None)

    @settings(max_examples=100, deadline=None)
    @given(st.sampled_from(["wav", "flac", "ogg", "mp3"]), st.randoms(use_true_random=False))
    def test_flipped_bits_give_a_sound_or_broken_member(self, format: str, rng: random.Random) -> None:
        data = bytearray(sound(tone(0.1, 16_000), 16_000, format))
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        try:
            (wave,) = AudioReader(max_seconds=1.0).read({format: bytes(data)}, random.Random(0))
        except BrokenMember:
            return
        assert 1 <= len(wave) <= 16_000
        assert torch.isfinite(wave).all()

    def test_rows_are_padded_with_silence(self) -> None:
        reader = AudioReader()
        data, length = reader.stack([torch.ones(5), torch.ones(3)])[:2]
        assert data.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
        assert length is not None
        assert length.tolist() == [5, 3]
        assert reader.blank().shape == (1600,)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "bird", "dog", "chien", "rouge", "un"]
    built = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    built.pre_tokenizer = pre_tokenizers.Whitespace()
    built.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(
        tokenizer_object=built, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    return str(folder)


def as_json(value: object) -> bytes:
    return json.dumps(value).encode()


class TestText:
    def test_token_ids(self, tokenizer: str) -> None:
        reader = TextReader(tokenizer)
        (ids,) = reader.read({"txt": b"a red bird"}, None)
        assert ids.dtype == torch.int64
        assert ids.tolist() == [2, 4, 5, 6, 3]

    def test_long_texts_are_cut_with_their_ending(self, tokenizer: str) -> None:
        (ids,) = TextReader(tokenizer, max_length=4).read({"txt": b"a red bird"}, None)
        assert ids.tolist() == [2, 4, 5, 3]

    def test_rows_are_padded_on_the_right(self, tokenizer: str) -> None:
        reader = TextReader(tokenizer)
        data, length = reader.stack([reader.encode("a dog"), reader.blank()])[:2]
        assert data.tolist() == [[2, 4, 7, 3], [0, 0, 0, 0]]
        assert length is not None
        assert length.tolist() == [4, 1]

    def test_captions_from_many_places(self, tokenizer: str) -> None:
        members = {
            "en.txt": b"a dog",
            "json": as_json({"captions": {"fr": "un chien", "de": ["ein Hund", " "], "it": None}}),
        }
        fields = ("json.captions.fr", "en.txt", "json.captions.*", "json.captions.it", "json.none", "es.txt")
        reader = TextReader(tokenizer, fields=fields)
        assert reader.captions(members) == ["un chien", "a dog", "ein Hund", "un chien"]

    def test_training_draws_one_evaluation_takes_the_first_or_all(self, tokenizer: str) -> None:
        members = {"json": as_json({"captions": ["a dog", "a bird", "a red dog"]})}
        reader = TextReader(tokenizer, fields=("json.captions",))
        assert [row.tolist() for row in reader.read(members, None)] == [[2, 4, 7, 3]]
        chosen = Counter(tuple(reader.read(members, random.Random(s))[0].tolist()) for s in range(600))
        assert len(chosen) == 3
        assert min(chosen.values()) > 150
        assert len(TextReader(tokenizer, fields=("json.captions",), every=True).read(members, None)) == 3

    def test_absence(self, tokenizer: str) -> None:
        reader = TextReader(tokenizer, fields=("txt", "json.caption"))
        for members in ({}, {"txt": b" \n"}, {"json": b"{}"}, {"json": as_json({"caption": None})}):
            assert reader.read(members, None) == ()
            assert not reader.finds(members)
        assert reader.finds({"txt": b"\xff"})

    @pytest.mark.parametrize(
        ("members", "reason"),
        [
            ({"txt": b"\xff"}, "invalid UTF-8"),
            ({"json": b"{"}, "invalid JSON"),
            ({"json": b"[" * 10_000}, "invalid JSON"),
            ({"json": as_json({"caption": 3})}, "caption is not a string"),
        ],
        ids=["utf8", "json", "deep", "number"],
    )
    def test_broken(self, tokenizer: str, members: dict[str, bytes], reason: str) -> None:
        with pytest.raises(BrokenMember, match=f"^{reason}$"):
            TextReader(tokenizer, fields=("txt", "json.caption")).read(members, None)

    def test_the_tokenizer_is_built_when_first_used(self, tokenizer: str) -> None:
        reader = TextReader(tokenizer)
        reader.prepare()
        copy = pickle.loads(pickle.dumps(reader))
        assert copy._built is None
        assert copy.encode("a dog").tolist() == [2, 4, 7, 3]
        assert len(pickle.dumps(reader)) < 1000

    def test_no_such_tokenizer(self) -> None:
        with pytest.raises(ValueError, match="no tokenizer 'no/such-tokenizer': give an asset"):
            TextReader("no/such-tokenizer").prepare()


def test_fields_walk_through_objects_and_arrays() -> None:
    members = {
        "json": as_json({"a": {"y": [1, 2], "x": {"b": 3}}, "c": [{"b": 4}, {"b": 5}, 6]}),
        "a.json": b"7",
    }
    assert read_field(members, "json.a.x.b") == [3]
    assert read_field(members, "json.a.*") == [{"b": 3}, 1, 2]
    assert read_field(members, "json.c.*.b") == [4, 5]
    assert read_field(members, "json.c") == [{"b": 4}, {"b": 5}, 6]
    assert read_field(members, "json.d.e") == []
    assert read_field(members, "a.json") == ["7"]
    assert read_field(members, "txt") == []


def array(value: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, value)
    return buffer.getvalue()


class TestSignal:
    @pytest.mark.parametrize("dtype", ["<f4", ">f8", "<i2", "u1", "?", "<f2"])
    @pytest.mark.parametrize("order", ["C", "F"])
    def test_arrays_of_any_number_type(self, dtype: str, order: Any) -> None:
        value = np.asarray(np.random.default_rng(0).integers(0, 2, (6, 3)), dtype=dtype, order=order)
        (row,) = SignalReader(channels=3).read({"npy": array(value)}, None)
        assert row.dtype == torch.float32
        np.testing.assert_array_equal(row, value.astype(np.float32))

    def test_a_vector_is_one_step(self) -> None:
        (row,) = SignalReader("pose.npy", channels=4).read({"pose.npy": array(np.arange(4.0))}, None)
        assert row.tolist() == [[0, 1, 2, 3]]

    def test_long_signals_are_cut(self) -> None:
        data = {"npy": array(np.arange(10.0)[:, None])}
        reader = SignalReader(channels=1, max_steps=4)
        assert reader.read(data, None)[0][:, 0].tolist() == [0, 1, 2, 3]
        starts = {reader.read(data, random.Random(s))[0][0, 0].item() for s in range(100)}
        assert starts == {0, 1, 2, 3, 4, 5, 6}

    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (array(np.zeros((5, 2))), r"shape is not \[steps, 3\]"),
            (array(np.zeros((5, 3, 1))), r"shape is not \[steps, 3\]"),
            (array(np.zeros((0, 3))), "empty signal"),
            (array(np.array([[0.0, np.nan, 1.0]])), "values not finite"),
            (array(np.array([["a", "b", "c"]])), "not an array of numbers"),
            (array(np.array([[None, 1, 2]])), "not an array of numbers"),
            (array(np.zeros((5, 3)))[:-1], "cannot decode"),
            (array(np.zeros((5, 3))).replace(b"(5, 3)", b"(9, 3)"), "cannot decode"),
            (b"\x93NUMPY\x01\x00\x10\x27" + b"(" * 10_000, "cannot decode"),
            (b"", "cannot decode"),
            (b"PK\x03\x04" + bytes(100), "cannot decode"),
        ],
    )
    def test_broken(self, data: bytes, reason: str) -> None:
        with pytest.raises(BrokenMember, match=f"^{reason}$"):
            SignalReader(channels=3).read({"npy": data}, None)

    def test_a_header_that_promises_much_allocates_nothing(self) -> None:
        data = array(np.zeros((5, 3))).replace(b"(5, 3), }      ", b"(99999999, 3), }")
        assert b"99999999" in data
        with pytest.raises(BrokenMember, match=r"^cannot decode$"):
            SignalReader(channels=3).read({"npy": data}, None)

    @settings(max_examples=150, deadline=None)
    @given(st.randoms(use_true_random=False))
    def test_flipped_bits_give_a_signal_or_broken_member(self, rng: random.Random) -> None:
        data = bytearray(array(np.zeros((5, 3), dtype=np.float32)))
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        try:
            (row,) = SignalReader(channels=3).read({"npy": bytes(data)}, None)
        except BrokenMember:
            return
        assert row.shape[1] == 3


def test_modalities() -> None:
    assert [r.modality for r in (AudioReader, TextReader, SignalReader)] == [
        Modality.AUDIO, Modality.TEXT, Modality.SIGNAL,
    ]  # fmt: skip
