"""Words as tokens: one beginning for each word, whatever it is made of."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_language import tiny_tokenizer, wordpiece
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mmlab.data.decode import BrokenMember
from mmlab.data.words import WordReader

AWKWARD = [
    "don't", "U.S.A.", "@paulwalk", "#photo", "http://bit.ly/bgCyZ0", "…", "\u200b", "\xad", "", " ",
    "\U0001d518\U0001d52b",
    "🙂", "🇩🇪", "ﬁne", "naïve", "x" * 5000, "日本語", "-", "\t", "a b", "\ud800", "Ünter",
]  # fmt: skip
"""No word at all, letters that vanish, words with spaces, half of a surrogate pair."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("words")
    wordpiece("[unused1]", "[unused2]").save_pretrained(folder / "wordpiece")
    tiny_tokenizer().save_pretrained(folder / "bytes")
    return {name: str(folder / name) for name in ("wordpiece", "bytes")}


def members(words: object) -> dict[str, bytes]:
    return {"json": json.dumps({"words": words}).encode()}


@pytest.mark.parametrize("kind", ["wordpiece", "bytes"])
@pytest.mark.parametrize("max_length", [8, 32, 4096])
def test_every_awkward_word_has_one_beginning(folders: dict[str, str], kind: str, max_length: int) -> None:
    reader = WordReader(folders[kind], max_length=max_length)
    reader.prepare()
    rows = reader.read(members(AWKWARD), None)
    assert sum(int(row[:, 1].sum()) for row in rows) == len(AWKWARD)
    assert all(len(row) <= max_length for row in rows)
    if kind == "wordpiece":
        assert all(row[0].tolist() == [2, 0] and row[-1].tolist() == [3, 0] for row in rows)
    assert all(row[:, 1].any() for row in rows)


def test_tokens_are_those_of_the_whole_text(folders: dict[str, str]) -> None:
    words = ["Pretty", "bad", "photo", "@paulwalk", "don't"]
    for kind in ("wordpiece", "bytes"):
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folders[kind])
        (row,) = WordReader(folders[kind], max_length=400).read(members(words), None)
        text = " ".join(words) if kind == "wordpiece" else " " + " ".join(words)
        assert row[:, 0].tolist() == tokenizer(text)["input_ids"]
    first = [wordpiece().convert_ids_to_tokens(int(n)) for n, begins in row.tolist() if begins]
    assert len(first) == 5


@settings(max_examples=40, deadline=None)
@given(words=st.lists(st.text(max_size=9), max_size=12), max_length=st.integers(3, 12))
def test_words_stay_whole_and_in_order(folders: dict[str, str], words: list[str], max_length: int) -> None:
    reader = WordReader(folders["wordpiece"], max_length=max_length)
    rows = reader.read(members(words), None)
    found: list[list[int]] = []
    for row in rows:
        assert len(row) <= max_length
        for token, begins in row[1:-1].tolist():
            if begins:
                found.append([])
            found[-1].append(token)
    assert found == [reader.encode(word)[: max_length - 2] for word in words]


def test_a_word_cannot_pass_for_a_special_token(folders: dict[str, str]) -> None:
    for kind, special, unknown in (
        ("wordpiece", {"[SEP]", "[PAD]", "[CLS]"}, {1}),
        ("bytes", {"<|end|>", "<|start|>"}, set()),
    ):
        reader = WordReader(folders[kind])
        (row,) = reader.read(members(["a", *sorted(special), "b"]), None)
        inside = row[1:-1, 0] if kind == "wordpiece" else row[:, 0]
        assert {token for token in inside.tolist() if token < 4 - 2 * (kind == "bytes")} <= unknown


def test_no_words_are_no_row(folders: dict[str, str]) -> None:
    reader = WordReader(folders["wordpiece"])
    assert reader.read(members([]), None) == ()
    assert not reader.finds(members([]))
    assert not reader.finds({"txt": b"a"})
    for wrong in ([1], [["a"], "b", {}], ["a"] * 100_001):
        assert reader.finds(members(wrong))
        with pytest.raises(BrokenMember, match=r"a word is not a string|too many words"):
            reader.read(members(wrong), None)


def test_null_among_words_is_no_word_to_be_left_out(folders: dict[str, str]) -> None:
    reader = WordReader(folders["wordpiece"])
    for content in (["a", None, "b"], [None]):
        assert reader.finds(members(content))
        with pytest.raises(BrokenMember, match=r"json\.words has null for a value"):
            reader.read(members(content), None)
    assert reader.read(members(None), None) == ()
    assert reader.read({"json": b"{}"}, None) == ()
    each = WordReader(folders["wordpiece"], field="json.lines.*.word")
    lines = [{"word": "a"}, {"word": "b"}, {"other": 1}]
    assert each.words({"json": json.dumps({"lines": lines}).encode()}) == ["a", "b"]
    lines[1] = {"word": None}
    with pytest.raises(BrokenMember, match="has null for a value"):
        each.words({"json": json.dumps({"lines": lines}).encode()})


def spaced(*, scheme: str | None) -> PreTrainedTokenizerFast:
    """In the manner of Llama: a space is `\u2581`, which the tokenizer puts before a text itself."""
    whole = [f"\u2581{word}" for word in ("hello", "world", "a", "b")]
    merges = [(word[:n], word[n]) for word in whole for n in range(1, len(word))]
    pieces = ["<unk>", "\u2581", *"abdehlorw", *dict.fromkeys(a + b for a, b in merges)]
    backend = Tokenizer(
        models.BPE({piece: n for n, piece in enumerate(pieces)}, merges, unk_token="<unk>", fuse_unk=True)
    )
    if scheme is None:
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        )
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", pad_token="<unk>")


@pytest.mark.parametrize("scheme", [None, "always", "first", "never"])
def test_a_tokenizer_that_puts_the_space_itself_has_one_of_it(scheme: str | None, tmp_path: Path) -> None:
    tokenizer = spaced(scheme=scheme)
    tokenizer.save_pretrained(tmp_path)
    reader = WordReader(str(tmp_path))
    reader.prepare()
    ids = [reader.encode(word) for word in ("hello", "world", "a")]
    assert [tokenizer.convert_ids_to_tokens(one) for one in ids] == [
        ["\u2581hello"], ["\u2581world"], ["\u2581a"],
    ]  # fmt: skip
    text = "hello world a" if scheme != "never" else " hello world a"
    assert [token for one in ids for token in one] == tokenizer(text)["input_ids"]
    assert len(reader.encode("")) == 1


def test_rows_are_padded_and_the_reader_travels(folders: dict[str, str]) -> None:
    reader = WordReader(folders["wordpiece"])
    reader.read(members(["a"]), None)
    travelled = pickle.loads(pickle.dumps(reader))
    assert "_built" not in vars(travelled)
    rows = (*travelled.read(members(["photo", "ab"]), None), travelled.blank())
    data, length, target, box = travelled.stack(rows)
    assert box is None
    assert length is not None
    assert length.tolist() == [5, 1]
    assert data[1].tolist() == [0] * 5
    assert target is not None
    assert target.tolist() == [[False, True, True, False, False], [False] * 5]
    assert torch.equal(data[0, 1:4], torch.tensor(reader.encode("photo") + reader.encode("ab")))


def test_settings_that_leave_no_room(folders: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"max_length=2 leaves no room for a word"):
        WordReader(folders["wordpiece"], max_length=2).prepare()
    with pytest.raises(ValueError, match="no tokenizer"):
        WordReader(str(tmp_path / "nowhere")).prepare()


def test_capital_letters_are_told_by_a_token_behind_the_word(folders: dict[str, str]) -> None:
    words = ["in", "Paris", "I", "met", "NASA", "iPhone", "U.S.", "7", "@paulwalk", "O'NEILL", "日本語"]
    mark = PreTrainedTokenizerFast.from_pretrained(folders["wordpiece"]).convert_tokens_to_ids
    some, every = "[unused1]", "[unused2]"
    plain = WordReader(folders["wordpiece"], max_length=400)
    reader = WordReader(folders["wordpiece"], max_length=400, casing=(some, every))
    reader.prepare()
    told = {"Paris": some, "I": some, "NASA": every, "iPhone": some, "U.S.": every, "O'NEILL": every}
    for word in words:
        assert reader.encode(word) == plain.encode(word) + ([mark(told[word])] if word in told else [])
    (row,) = reader.read(members(words), None)
    assert int(row[:, 1].sum()) == len(words)
    assert len(row) == len(plain.read(members(words), None)[0]) + len(told)


def test_a_mark_that_the_vocabulary_lacks(folders: dict[str, str]) -> None:
    reader = WordReader(folders["wordpiece"], casing=("[unused1]", "[unused99]"))
    with pytest.raises(ValueError, match=r"casing: '\[unused99\]' is no token"):
        reader.prepare()
