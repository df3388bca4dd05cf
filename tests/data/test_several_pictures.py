"""Several pictures of one sample: which members they are, their order, and their way to the batch."""

from __future__ import annotations

import io
import json
from pathlib import Path
from random import Random

import pytest
import torch
from PIL import Image
from tars import write_tar
from tiny_language import tiny_language

from mmlab.batch import MARKERS, Modality
from mmlab.data.audio import AudioReader
from mmlab.data.exhibit import exhibit
from mmlab.data.features import describe_reader
from mmlab.data.image import ImageReader
from mmlab.data.module import ShardData
from mmlab.data.parts import Splits
from mmlab.data.pattern import matching
from mmlab.data.plan import Loading
from mmlab.data.prompt import Prompt, PromptReader
from mmlab.data.samples import RawSample

MARKER = MARKERS[Modality.IMAGE]


def picture(red: int, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (12, 8), (red, 0, 0)).save(buffer, format)
    return buffer.getvalue()


def reds(rows: tuple[torch.Tensor, ...]) -> list[int]:
    return [int(row[0, 0, 0]) for row in rows]


def test_the_order_of_members() -> None:
    names = ["10.png", "2.jpg", "view10.png", "view9.png", "jpg", "txt", "0.png", "a.b.png"]
    assert matching(names, ["jpg", "*.png", "*.jpg"]) == [
        "jpg", "a.b.png", "view9.png", "view10.png", "0.png", "2.jpg", "10.png",
    ]  # fmt: skip
    assert matching(["png", "jpg"], ["jpg", "png", "*"]) == ["jpg", "png"]
    assert matching(["abc.ogg", "ab.ogg"], ["??.ogg"]) == ["ab.ogg"]
    assert matching(["9" * 5000 + ".png", "1.png"], ["*.png"])[0] == "1.png"


@pytest.mark.parametrize("rng", [None, Random(0)], ids=["evaluation", "training"])
def test_numbered_pictures_are_found_and_read_in_their_order(rng: Random | None) -> None:
    members = {f"{n}.png": picture(10 * n) for n in (10, 2, 0)} | {"json": b"{}", "1.extra": b"x"}
    one, every = ImageReader(4, crop_scale=(1.0, 1.0)), ImageReader(4, every=True, crop_scale=(1.0, 1.0))
    assert one.finds(members)
    assert reds(one.read(members, rng)) == [0]
    assert reds(every.read(members, rng)) == [0, 20, 100]
    assert every.read({"json": b"{}"}, rng) == ()
    left_right = {"left.png": picture(1), "right.png": picture(2)}
    assert not every.finds(left_right)  # such as masks: they are to be named
    named = ImageReader(4, members=("right.*", "*.png"), every=True)
    assert reds(named.read(left_right, rng)) == [2, 1]


def test_one_picture_draws_what_it_always_drew() -> None:
    members = {"png": picture(200)}
    for every in (False, True):
        reader = ImageReader(4, every=every, flip=0.5, colour_jitter=0.3)
        rng = Random(3)
        (row,) = reader.read(members, rng)
        other = Random(3)
        assert torch.equal(row, reader.transform(members["png"], other))
        assert rng.random() == other.random()


def test_features_of_one_picture_do_not_pass_for_those_of_all() -> None:
    assert ImageReader(4).identity != ImageReader(4, every=True).identity
    assert describe_reader(ImageReader(4)) != describe_reader(ImageReader(4, every=True))
    assert describe_reader(AudioReader()) == describe_reader(AudioReader(every=True))  # they hold all sounds


def test_pages_show_what_is_read() -> None:
    raw = RawSample("a", {"10.png": b"ten", "9.png": b"nine"})
    assert exhibit(raw, [ImageReader(4)]).images == (b"nine",)
    assert exhibit(raw, [ImageReader(4, every=True)]).images == (b"nine", b"ten")


def test_readers_tell_how_many_rows_they_read() -> None:
    members = {"0.png": picture(0), "1.png": picture(1), "a.wav": b"", "b.wav": b""}
    for training in (True, False):
        assert ImageReader(4).count(members, training=training) == 1
        assert ImageReader(4, every=True).count(members, training=training) == 2
        assert AudioReader(members=("*.wav",)).count(members, training=training) == 1
        assert AudioReader().count(members, training=training) == 0
    every = AudioReader(members=("*.wav",), every=True)
    assert (every.count(members, training=True), every.count(members, training=False)) == (1, 2)


@pytest.mark.parametrize("split", ["train", "val"])
def test_two_pictures_reach_the_batch_with_their_markers(tmp_path: Path, split: str) -> None:
    files = []
    for number, reds_of in enumerate([(10, 20), (30, 40), (50,)]):
        files += [(f"{number}.{n}.png", picture(red)) for n, red in reversed(list(enumerate(reds_of)))]
        files.append((f"{number}.json", json.dumps({"a": f"word{number}", "b": "yes"}).encode()))
    write_tar(tmp_path / "x.tar", files)
    data = ShardData(
        batch_size=3,
        splits=Splits(train=str(tmp_path / "x.tar"), val=str(tmp_path / "x.tar")),
        image=ImageReader(4, every=True, crop_scale=(1.0, 1.0)),
        text=PromptReader(
            str(tiny_language(tmp_path / "language")), prompts=[Prompt("<image>{json.a}<image>", "{json.b}")]
        ),
        loading=Loading(group_by="key"),
    )
    data.setup("fit")
    batch = next(iter(data.train_dataloader() if split == "train" else data.val_dataloader()))
    places = {key: n for n, key in enumerate(batch.keys) if key}
    assert [skip.key for skip in batch.skips] == ["2"]
    assert "2 x <image> for 1 in the sample" in batch.skips[0].reason
    assert batch.image is not None
    assert batch.text is not None
    owners, shown = batch.image.owner.tolist(), batch.image.data[:, 0, 0, 0].tolist()
    for key, wanted in (("0", [10, 20]), ("1", [30, 40])):
        assert [red for owner, red in zip(owners, shown, strict=True) if owner == places[key]] == wanted
        (row,) = batch.text.data[batch.text.owner == places[key]].tolist()
        assert row.count(MARKER) == 2
        first, second = (at for at, token in enumerate(row) if token == MARKER)
        assert second - first > 1  # the words of the sample stand between
