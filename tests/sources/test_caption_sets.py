"""COCO, Flickr, Multi30k and ESC-10: tiny releases, and the real pieces at hand -> samples of captions."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from releases import about, note, picture, read_shards, write_release

from mmlab.sources.coco import Coco
from mmlab.sources.esc10 import Esc10
from mmlab.sources.flickr import Flickr8k, Flickr30k
from mmlab.sources.multi30k import Multi30k


def coco_captions(images: range, year: str, part: str) -> dict[str, Any]:
    prefix = f"COCO_{part}{year}_" if year == "2014" else ""
    return {
        "info": {}, "licenses": [],
        "images": [
            {"license": 5, "file_name": f"{prefix}{image:012}.jpg", "height": 4, "width": 6, "id": image}
            for image in images
        ],
        "annotations": [
            {"image_id": image, "id": 10 * image + n, "caption": f"Caption {n} of {image}. "}
            for n in range(5)
            for image in images
        ],
    }  # fmt: skip


@pytest.mark.parametrize("year", ["2014", "2017"])
def test_coco(tmp_path: Path, year: str) -> None:
    files: dict[str, Any] = {}
    for part, images in (("train", range(30)), ("val", range(100, 103))):
        content = coco_captions(images, year, part)
        files[f"annotations/captions_{part}{year}.json"] = content
        files |= {f"{part}{year}/{row['file_name']}": picture(row["id"]) for row in content["images"]}
    path = write_release(tmp_path / "in", files)
    folder = Coco(from_file=path, out=tmp_path / "out").prepare()
    train, val, test = (read_shards(folder, split) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (27, 3, 3), "val is at most a tenth"
    assert set(test["102"]) == {"jpg", "json"}
    assert test["102"]["jpg"] == picture(102)
    captions = [f"Caption {n} of 102." for n in range(5)]
    assert about(test["102"]) == {"captions": captions, "image_id": 102}
    assert note(folder)["splits"]["train"] == {"samples": 27, "media": 27, "captions": 135, "left_out": {}}


def karpathy(coco: bool) -> dict[str, Any]:
    parts = ["train", "restval", "val", "test"] if coco else ["train", "val", "test"]
    images = []
    for n, part in enumerate(parts):
        where = {"filepath": "val2014", "filename": f"COCO_val2014_{n:012}.jpg", "cocoid": n} if coco else {}
        where = where or {"filename": f"100{n}.jpg"}
        sentences = [
            {"tokens": ["a", "cat"], "raw": f"A cat {k}.", "imgid": n, "sentid": k} for k in range(5)
        ]
        images.append({**where, "sentids": list(range(5)), "imgid": n, "sentences": sentences, "split": part})
    return {"images": images, "dataset": "coco" if coco else "flickr30k"}


@pytest.mark.parametrize("name", ["dataset_coco.json", "coco/dataset.json"])
def test_karpathys_splits_of_coco(tmp_path: Path, name: str) -> None:
    files: dict[str, Any] = {name: karpathy(True)}
    files |= {f"val2014/COCO_val2014_{n:012}.jpg": picture(n) for n in range(3)}
    files |= {"val2017/000000000003.jpg": picture(3)}
    folder = Coco(from_file=write_release(tmp_path / "in", files), out=tmp_path / "out").prepare()
    keys = {split: sorted(read_shards(folder, split)) for split in ("train", "val", "test")}
    assert keys == {"train": ["0", "1"], "val": ["2"], "test": ["3"]}
    assert about(read_shards(folder, "test")["3"])["image_id"] == 3
    assert read_shards(folder, "test")["3"]["jpg"] == picture(3)
    files[name]["images"][0]["split"] = "other"
    path = write_release(tmp_path / "in", files)
    with pytest.raises(ValueError, match=r"dataset(_coco)?\.json in .* is not as released: no field 'other'"):
        Coco(from_file=path, out=tmp_path / "more").prepare()


def test_photographs_that_are_not_there(tmp_path: Path) -> None:
    files = {f"captions_{part}2017.json": coco_captions(range(20), "2017", part) for part in ("train", "val")}
    path = write_release(tmp_path / "in", {**files, "train2017.zip": b"", "val2017.zip": b""})
    with pytest.raises(
        ValueError,
        match=r"18 of 18 samples of train lack a file .*, such as \d+\.jpg; .* unpack the archives",
    ):
        Coco(from_file=path, out=tmp_path / "out").prepare()
    with pytest.raises(
        ValueError, match=r"lacks captions_train2017\.json, captions_val2017\.json; it holds x"
    ):
        Coco(from_file=write_release(tmp_path / "other", {"x": ""}), out=tmp_path / "out").prepare()


def test_flickr8k(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"100026820{n}_693b08cb0e" for n in range(5)]
    tokens = "".join(f"{name}.jpg#{k}\tA child {k} .\n" for name in names for k in range(5))
    tokens += "2258277193_586949ec62.jpg.1#0\tpeople waiting .\n"
    files: dict[str, Any] = {
        "Flickr8k.token.txt": tokens,
        "Flickr_8k.trainImages.txt": f"{names[0]}.jpg\n{names[1]}.jpg\n",
        "Flickr_8k.devImages.txt": f"{names[2]}.jpg\nunknown.jpg\n",
        "Flickr_8k.testImages.txt": f"{names[3]}.jpg",
    }
    files |= {f"Flicker8k_Dataset/{name}.jpg": picture(n) for n, name in enumerate(names)}
    folder = Flickr8k(from_file=write_release(tmp_path / "in", files), out=tmp_path / "out").prepare()
    keys = {split: sorted(read_shards(folder, split)) for split in ("train", "val", "test")}
    assert keys == {"train": names[:2], "val": [names[2]], "test": [names[3]]}
    test = read_shards(folder, "test")[names[3]]
    assert about(test) == {"captions": [f"A child {k} ." for k in range(5)], "image_id": names[3]}
    assert test["jpg"] == picture(3)
    assert note(folder)["left_out"] == {"photographs in no list": 2, "photographs without captions": 1}
    assert "left out: 2: photographs in no list\n" in capsys.readouterr().err
    files["Flickr8k.token.txt"] += "no tab\n"
    with pytest.raises(ValueError, match=r"Flickr8k\.token\.txt, line 27, in .* is not as released"):
        Flickr8k(from_file=write_release(tmp_path / "in", files), out=tmp_path / "more").prepare()


def test_flickr30k(tmp_path: Path) -> None:
    files: dict[str, Any] = {f"flickr30k-images/100{n}.jpg": picture(n) for n in range(3)}
    with_lists = {"results_20130124.token": "".join(f"100{n}.jpg#0\tTwo men .\n" for n in range(3))}
    with_lists |= {"train.txt": "1000\n", "val.txt": "1001\n", "test.txt": "1002\n"}
    keys = {}
    for name, more in (("lists", with_lists), ("karpathy", {"dataset_flickr30k.json": karpathy(False)})):
        path = write_release(tmp_path / name, {**files, **more})
        folder = Flickr30k(from_file=path, out=tmp_path / f"{name} out").prepare()
        keys[name] = [list(read_shards(folder, split)) for split in ("train", "val", "test")]
    assert keys["lists"] == keys["karpathy"] == [["1000"], ["1001"], ["1002"]]


def test_multi30k(tmp_path: Path) -> None:
    files: dict[str, Any] = {f"flickr30k-images/100{n}.jpg": picture(n) for n in range(6)}
    for part, numbers in (("train", (0, 1, 2)), ("val", (3,)), ("test_2016_flickr", (4, 5))):
        names = "".join(f"100{n}.jpg#{n}\n" for n in numbers)
        files[f"data/task1/image_splits/{part}.txt"] = names
        for language, word in (("en", "dog"), ("de", "Hund")):
            lines = "".join("\n" if (n, language) == (1, "de") else f"{word} {n}\n" for n in numbers)
            files[f"data/task1/raw/{part}.{language}.gz"] = gzip.compress(lines.encode())
    path = write_release(tmp_path / "in", files)
    folder = Multi30k(from_file=path, out=tmp_path / "out").prepare()
    assert sorted(read_shards(folder, "train")) == ["1000", "1002"]
    test = read_shards(folder, "test")["1005"]
    assert about(test) == {"captions": {"en": ["dog 5"], "de": ["Hund 5"]}, "image_id": "1005"}
    assert note(folder)["left_out"] == {"photographs with an empty caption": 1}
    with pytest.raises(ValueError, match=r"lacks raw/train\.fr\.gz or raw/train\.fr or "):
        Multi30k(languages=["en", "fr"], from_file=path, out=tmp_path / "fr").prepare()
    files["data/task1/raw/val.de.gz"] = gzip.compress(b"Hund\nHund\n")
    path = write_release(tmp_path / "in", files)
    with pytest.raises(ValueError, match=r"raw/val\.de\.gz in .*: 2 captions for the 1 photographs of val"):
        Multi30k(from_file=path, out=tmp_path / "more").prepare()
    files["data/task1/raw/val.de.gz"] = gzip.compress(b"Hund\n")[:-4]
    path = write_release(tmp_path / "in", files)
    with pytest.raises(ValueError, match=r"raw/val\.de\.gz in .* is broken"):
        Multi30k(from_file=path, out=tmp_path / "more").prepare()


def test_the_released_coco(public_data: Path, tmp_path: Path) -> None:
    folder = Coco(max_side=256, from_file=public_data / "coco-mini", out=tmp_path / "coco").prepare()
    splits = note(folder)["splits"]
    assert splits["train"]["samples"] + splits["val"]["samples"] == 50
    assert splits["test"] == {"samples": 25, "media": 25, "captions": 125, "left_out": {}}
    for members in read_shards(folder, "test").values():
        with Image.open(io.BytesIO(members["jpg"])) as image:
            assert (max(image.size), image.format) == (256, "JPEG")


def test_the_released_esc10(public_data: Path, tmp_path: Path) -> None:
    release = public_data / "esc-10"
    folder = Esc10(from_file=release, out=tmp_path / "esc").prepare()
    train, val, test = (read_shards(folder, split) for split in ("train", "val", "test"))
    assert (len(train) + len(val), len(test)) == (80, 80)
    assert {about(members)["fold"] for members in test.values()} == {2}
    recordings = [{key.rpartition("-")[0] for key in samples} for samples in (train, val)]
    assert not recordings[0] & recordings[1]
    assert len(recordings[1]) == 10
    assert {about(members)["label"] for members in val.values()} == {
        about(members)["label"] for members in test.values()
    }
    assert test["2-114280-A"]["ogg"] == (release / "001 - Dog bark" / "2-114280-A.ogg").read_bytes()
    dog = about(test["2-114280-A"])
    assert dog["captions"][0] == "a dog barking"
    assert dog["label"] == dog["group"] == "dog bark"
    assert dog["recording"] == "114280"
    assert "by plingativator [CC-BY]" in dog["attribution"]
    assert all("attribution" in about(members) for members in train.values())
    other = Esc10(test_fold=1, from_file=release, out=tmp_path / "other").prepare()
    assert {about(members)["fold"] for members in read_shards(other, "train").values()} == {2}
    with pytest.raises(ValueError, match=r"cannot test on fold 5: .* has 1, 2"):
        Esc10(test_fold=5, from_file=release, out=tmp_path / "more").prepare()
    with pytest.raises(ValueError, match="val is 99: it takes from 0 to 7 of the 8 recordings of dog bark"):
        Esc10(val=99, from_file=release, out=tmp_path / "more").prepare()


def test_sounds_that_are_not_esc10(tmp_path: Path) -> None:
    path = write_release(tmp_path / "in", {"001 - Dog bark/1-1-A.ogg": b"x", "README.txt": ""})
    with pytest.raises(ValueError, match=r"lacks clips of Baby cry, Chainsaw, .*; it holds 001 - Dog bark/"):
        Esc10(from_file=path, out=tmp_path / "out").prepare()
