"""Two marked entities in one row: markers, order, and what is cut where a text is too long."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_language import tiny_tokenizer, wordpiece

from mmlab.data.decode import BrokenMember
from mmlab.data.entity_pair import EntityPairReader

TOKENS = wordpiece()
MARKS = ("@", "@", "#", "#")
AT, HASH = TOKENS.convert_tokens_to_ids(["@", "#"])
Place = tuple[int, int]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("pairs")
    wordpiece().save_pretrained(folder / "wordpiece")
    tiny_tokenizer().save_pretrained(folder / "bytes")
    return {name: str(folder / name) for name in ("wordpiece", "bytes")}


def members(words: object, head: object, tail: object) -> dict[str, bytes]:
    return {"json": json.dumps({"words": words, "head": head, "tail": tail}).encode()}


def text(row: torch.Tensor) -> str:
    """The tokens of a row, a star before those that are told of."""
    found = [("*" if told else "") + TOKENS.convert_ids_to_tokens(int(token)) for token, told in row.tolist()]
    return " ".join(found[1:-1])


@pytest.mark.parametrize(
    ("head", "tail", "wanted"),
    [
        ([1, 3], [4, 5], "a *@ b c @ d *# e #"),
        ([4, 5], [1, 3], "a *# b c # d *@ e @"),
        ([0, 1], [1, 5], "*@ a @ *# b c d e #"),
        ([1, 4], [2, 3], "a *@ b *# c # d @ e"),
        ([1, 3], [2, 4], "a *@ b *# c @ d # e"),
        ([1, 3], [1, 2], "a *@ *# b # c @ d e"),
        ([2, 3], [2, 3], "a b *@ *# c @ # d e"),
    ],
)
def test_markers_stand_around_both(folders: dict[str, str], head: Any, tail: Any, wanted: str) -> None:
    (row,) = EntityPairReader(folders["wordpiece"]).read(members(list("abcde"), head, tail), None)
    assert text(row) == wanted
    assert (row[0].tolist(), row[-1].tolist()) == ([2, 0], [3, 0])


def test_a_marker_is_a_token_of_the_vocabulary_or_words(folders: dict[str, str]) -> None:
    reader = EntityPairReader(folders["wordpiece"], markers=("photo", "photo", "ab", "."))
    (row,) = reader.read(members(["a", "photo", "b"], [0, 1], [2, 3]), None)
    assert text(row) == "*photo a photo photo *a ##b b ."
    special = EntityPairReader(folders["wordpiece"], markers=("[PAD]", "x", "[CLS]", "y"))
    (row,) = special.read(members(["a", "[PAD]"], [0, 1], [1, 2]), None)
    assert text(row).startswith("*[PAD] a x *[CLS] ")
    assert row[:, 0].tolist().count(0) == 1, "what stands in the data cannot pass for it"
    (row,) = EntityPairReader(folders["bytes"]).read(members(["a", "b"], [0, 1], [1, 2]), None)
    letters = tiny_tokenizer().decode(row[:, 0].tolist())
    assert letters == "@ a@# b#", "a space begins a word, and here makes a marker two tokens"
    assert row[:, 1].sum() == 2


@st.composite
def pairs(draw: st.DrawFn) -> tuple[list[str], Place, Place, int]:
    words = draw(st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=14))

    def place() -> Place:
        start = draw(st.integers(0, len(words) - 1))
        return start, draw(st.integers(start + 1, len(words)))

    return words, place(), place(), draw(st.integers(8, 40))


@settings(max_examples=150, deadline=None)
@given(pairs())
def test_both_entities_stay_in_the_row(
    folders: dict[str, str], pair: tuple[list[str], Place, Place, int]
) -> None:
    words, head, tail, max_length = pair
    reader = EntityPairReader(folders["wordpiece"], max_length=max_length)
    reader.prepare()
    (row,) = reader.read(members(words, head, tail), None)
    assert len(row) <= max_length
    marked = row[row[:, 1] == 1, 0].tolist()
    assert sorted(marked) == sorted([AT, HASH])
    tokens = row[1:-1, 0].tolist()
    assert (tokens.count(AT), tokens.count(HASH)) == (2, 2)
    # Behind its marker each entity goes on with its first word, as far as half of the room.
    for mark, (start, stop) in ((AT, head), (HASH, tail)):
        inside = tokens[tokens.index(mark) + 1 :]
        inside = [token for token in inside[: inside.index(mark)] if token not in (AT, HASH)]
        whole = [token for word in words[start:stop] for token in reader.encode(word)]
        assert inside[0] == whole[0]
        # What is kept is some of the words, in their order.
        rest = iter(whole)
        assert all(token in rest for token in inside)
    every = [token for word in words for token in reader.encode(word)]
    kept = [token for token in tokens if token not in (AT, HASH)]
    rest = iter(every)
    assert all(token in rest for token in kept)
    if len(every) + 6 <= max_length and all(
        len(reader.encode(word)) <= (max_length - 6) // 2 for word in words
    ):
        assert kept == every, "nothing is cut that has room"


@pytest.mark.parametrize(
    ("max_length", "wanted"),
    [
        (8, "*@ f @ *# t #"),
        (9, "*@ f g @ *# t #"),
        (10, "e *@ f g @ *# t #"),
        (13, "e *@ f g @ h s *# t # u"),
        (15, "d e *@ f g @ h i s *# t # u"),
        (32, "a b c d e *@ f g @ h i j k l m n o p q r s *# t # u v w x y z"),
    ],
)
def test_what_is_nearest_stays(folders: dict[str, str], max_length: int, wanted: str) -> None:
    reader = EntityPairReader(folders["wordpiece"], max_length=max_length)
    (row,) = reader.read(members(list("abcdefghijklmnopqrstuvwxyz"), [5, 7], [19, 20]), None)
    assert text(row) == wanted


@pytest.mark.parametrize(
    "place", [None, [1], [1, 2, 3], [1, "2"], [True, 2], [2, 2], [-1, 1], [1, 4], [1.0, 2]]
)
def test_an_entity_that_is_no_part_of_the_words(folders: dict[str, str], place: object) -> None:
    reader = EntityPairReader(folders["wordpiece"])
    for head, tail, field in ((place, [0, 1], "json.head"), ([0, 1], place, "json.tail")):
        broken = members(["a", "b", "c"], head, tail)
        assert reader.finds(broken)
        with pytest.raises(BrokenMember, match=rf"{field} is (not the places of|\[.*\], of 3 words)"):
            reader.read(broken, None)


def test_no_words_are_no_row_and_the_reader_travels(folders: dict[str, str]) -> None:
    reader = EntityPairReader(folders["wordpiece"])
    assert reader.read(members([], [0, 1], [0, 1]), None) == ()
    travelled = pickle.loads(pickle.dumps(reader))
    rows = (*travelled.read(members(["a", "b"], [0, 1], [1, 2]), None), travelled.blank())
    _, length, target, _ = travelled.stack(rows)
    assert (length.tolist(), target.sum(dim=1).tolist()) == ([8, 1], [2, 0])
    assert reader.describe() == "json.words, json.head, json.tail"


def test_settings_that_do_not_fit(folders: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"data\.text\.markers has 2, but 4 are needed"):
        EntityPairReader(folders["wordpiece"], markers=("@", "#"))
    with pytest.raises(
        ValueError, match=r"'@' and '@' begin with the same token for .*: choose markers that"
    ):
        EntityPairReader(folders["wordpiece"], markers=("@", "x", "@", "y")).prepare()
    with pytest.raises(
        ValueError, match="max_length=7 leaves no room for two words and their markers: raise"
    ):
        EntityPairReader(folders["wordpiece"], max_length=7).prepare()
