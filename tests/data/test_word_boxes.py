"""Boxes of words: every token has that of its word, whatever it is made of; bad ones are counted."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_language import tiny_tokenizer, wordpiece

from mmlab.batch import NOBODY, Modality
from mmlab.data.collate import Sample, collate
from mmlab.data.decode import BrokenMember
from mmlab.data.image import ImageReader
from mmlab.data.module import ShardData
from mmlab.data.order import EvaluationOrder
from mmlab.data.shards import ShardSet, write_shards
from mmlab.data.stream import Known, Stream
from mmlab.data.words import WordReader
from mmlab.parallel.micro_batch import split

AWKWARD = ["", "\u200b", "\xad", "🙂", "🇩🇪", "x" * 5000, "12.50", "don't", "日本語", "\ud800", "a b", "[SEP]"]
"""Empty after normalisation, emoji, longer than a row, half of a surrogate pair."""
words_and_boxes = st.lists(
    st.tuples(
        st.sampled_from(AWKWARD) | st.text(max_size=9),
        st.lists(st.floats(0, 1), min_size=4, max_size=4).map(
            lambda b: [min(b[0], b[1]), min(b[2], b[3]), max(b[0], b[1]), max(b[2], b[3])]
        ),
    ),
    max_size=12,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("boxes")
    wordpiece().save_pretrained(folder / "wordpiece")
    tiny_tokenizer().save_pretrained(folder / "bytes")
    return {name: str(folder / name) for name in ("wordpiece", "bytes")}


def reader(folder: str, max_length: int = 32) -> WordReader:
    return WordReader(folder, max_length=max_length, boxes="json.boxes")


def members(words: list[str], boxes: object) -> dict[str, bytes]:
    return {"json": json.dumps({"words": words, "boxes": boxes}).encode()}


@settings(max_examples=80, deadline=None)
@given(page=words_and_boxes, kind=st.sampled_from(["wordpiece", "bytes"]), max_length=st.integers(3, 40))
def test_every_token_has_the_box_of_its_word(
    folders: dict[str, str], page: list[tuple[str, list[float]]], kind: str, max_length: int
) -> None:
    words, boxes = [word for word, _ in page], [box for _, box in page]
    own = reader(folders[kind], max_length)
    rows = own.read(members(words, boxes), None)
    plain = WordReader(folders[kind], max_length=max_length).read(members(words, boxes), None)
    assert [row[:, :2].long().tolist() for row in rows] == [row.tolist() for row in plain]
    if not rows:
        return
    ids, length, first, box = own.stack([*rows, own.blank()])
    assert length is not None
    assert first is not None
    assert box is not None
    assert ids.dtype == torch.int64
    found = iter(torch.tensor(boxes))
    around = 1 if kind == "wordpiece" else 0
    for row, count in enumerate(length[:-1].tolist()):
        inside = range(around, count - around)
        for token in range(box.shape[1]):
            if token not in inside:  # special tokens and padding
                assert box[row, token].tolist() == [0] * 4
                continue
            if first[row, token]:
                expected = next(found)
            assert torch.equal(box[row, token], expected)
    assert list(found) == []
    assert not box[-1].any()


@pytest.mark.parametrize(
    ("boxes", "said"),
    [
        ([[0, 0, 1, 1]], "2 words, but 1 boxes"),
        ([[0, 0, 1, 1]] * 3, "2 words, but 3 boxes"),
        (None, "2 words, but 0 boxes"),
        ([[0, 0, 1, 1], None], "boxes has null for a value"),
        # As many boxes as words, but each a place too early.
        ([None, [0, 0, 1, 1], [0, 0, 1, 1]], "boxes has null for a value"),
        ([[0, 0, 1, 1], [0, 0, 1]], "a box is not four numbers"),
        ([[0, 0, 1, 1], [0, 0, 1, "1"]], "a box is not four numbers"),
        ([[0, 0, 1, 1], [0, 0, 1, True]], "a box is not four numbers"),
        ([[0, 0, 1, 1], 3], "a box is not four numbers"),
        ([[0, 0, 1, 1], [0, 0, 1.01, 1]], "as shares of the page"),
        ([[0, 0, 1, 1], [-0.1, 0, 1, 1]], "as shares of the page"),
        ([[0, 0, 1, 1], [0.5, 0, 0.4, 1]], "as shares of the page"),
        ([[0, 0, 1, 1], [0, 0.5, 1, 0.4]], "as shares of the page"),
        ([[0, 0, 1, 1], [0, 0, float("nan"), 1]], "as shares of the page"),
        ([[0, 0, 1, 1], [0, 0, 10**400, 1]], "as shares of the page"),
    ],
)
def test_a_bad_box_is_counted_with_its_reason(
    folders: dict[str, str], boxes: object, said: str, tmp_path: Path
) -> None:
    own = reader(folders["wordpiece"])
    with pytest.raises(BrokenMember, match=said):
        own.read(members(["a", "b"], boxes), None)
    samples = [{"__key__": "bad", **members(["a", "b"], boxes)}, {"__key__": "empty", **members([], [])}]
    shards = ShardSet(write_shards(samples, tmp_path, "x"))
    order = EvaluationOrder(shards.counts, batch_size=2)
    batch = Stream(shards, order, [own], seed=None, group_by="key").batch(0)
    (skip,) = batch.skips
    assert (skip.key, batch.valid.tolist()) == ("bad", [False, True])
    assert said in skip.reason


def test_boxes_stay_with_their_rows(folders: dict[str, str]) -> None:
    own = pickle.loads(pickle.dumps(reader(folders["wordpiece"], 4)))
    boxes = [[0, 0, 0.5, 1], [0.25, 0.5, 1, 1], [0, 0, 1, 1]]
    rows = own.read(members(["ab", "cd", "e"], boxes), None)
    assert len(rows) == 3
    samples = [
        Sample("a", 0, 0, rows={Modality.TEXT: rows}),
        Sample("b", 1, 1),
        Sample("c", 2, 2, rows={Modality.TEXT: rows[1:]}),
    ]
    batch = collate(samples, [own])
    text = batch.text
    assert text is not None
    assert text.box is not None
    assert text.box.dtype == torch.float32
    assert text.owner.tolist() == [0, 0, 0, NOBODY, 2, 2]
    assert text.box[:, 1].tolist() == [*boxes, [0.0] * 4, *boxes[1:]]
    chosen = batch.select(torch.tensor([2, 1])).text
    assert chosen is not None
    assert chosen.box is not None
    assert chosen.box[:, 1].tolist() == [*boxes[1:], [0.0] * 4]
    lost = text.without(torch.tensor([True, False, False]))
    assert lost.box is text.box
    moved = text.to("meta").box
    assert moved is not None
    assert moved.device.type == "meta"
    parts = [part.text.box[:, 1].tolist() for part in split(batch, 1)]
    assert parts == [boxes, [[0.0] * 4], boxes[1:]]
    plain = WordReader(folders["wordpiece"]).stack([torch.tensor([[4, 1]])])
    assert plain.box is None


def test_a_picture_that_moves_is_refused_beside_boxes(folders: dict[str, str]) -> None:
    own = reader(folders["wordpiece"])
    for image in (ImageReader(8), ImageReader(8, fit="pad"), ImageReader(8, fit="stretch", flip=0.5)):
        with pytest.raises(ValueError, match=r"boxes would lie elsewhere.*set fit to stretch and flip to 0"):
            ShardData(batch_size=1, text=own, image=image)
        ShardData(batch_size=1, text=WordReader(folders["wordpiece"]), image=image)
    ShardData(batch_size=1, text=own, image=ImageReader(8, fit="stretch"))


@pytest.mark.parametrize("rng", [None, Random(3)])
@pytest.mark.parametrize(("width", "height"), [(40, 200), (200, 40), (30, 30)])
def test_a_stretched_page_keeps_every_share_in_its_place(width: int, height: int, rng: Random | None) -> None:
    pixels = np.zeros((height, width), dtype=np.uint8)
    pixels[height // 2 :, : width // 2] = 255  # the lower left quarter
    folder = ImageReader((20, 60), fit="stretch", crop_scale=(0.3, 1.0))
    picture = folder.transform(_png(pixels), rng).float()
    assert picture.shape == (3, 20, 60)
    assert float(picture[:, 12:, :28].min()) > 200
    assert float(picture[:, :8].max()) < 50
    assert float(picture[:, :, 32:].max()) < 50


def _png(pixels: np.ndarray) -> bytes:
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()


def test_notes_are_read_where_the_run_names_them(tmp_path: Path) -> None:
    contents = [b'{"note": {"a": [1]}}', b'{"note": "as it is"}', b"{}", b"broken"]
    samples = [{"__key__": f"k{n}", "json": content} for n, content in enumerate(contents)]
    shards = ShardSet(write_shards(samples, tmp_path, "x"))
    order = EvaluationOrder(shards.counts, batch_size=4)

    def read(field: str | None) -> Stream:
        return Stream(shards, order, [], seed=None, group_by="key", known=Known(note=field))

    batch = read("json.note").batch(0)
    assert batch.notes == ('{"a": [1]}', "as it is", "", "")
    assert [(skip.key, skip.reason) for skip in batch.skips] == [("k3", "note: invalid JSON")]
    assert batch.select(torch.tensor([1, 0])).notes == ("as it is", '{"a": [1]}')
    assert read("json").batch(0).notes == tuple(content.decode() for content in contents)
    assert read(None).batch(0).notes == ()
