"""Receipts and forms: tiny releases as they are released, and the real receipts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from releases import about, note, picture, read_shards, write_release

from mmlab.sources.funsd import Funsd
from mmlab.sources.sroie import FIELDS, Sroie

LINES = """10,10,90,10,90,20,10,20,ACME, SONS & CO
10,30,90,30,90,40,10,40,27,JALAN DEDAP 13,
10,45,90,45,90,55,10,55,81100 JOHOR.

10,60,50,60,50,70,10,70,SUB TOTAL
60,60,90,60,90,70,60,70,9.50
10,80,50,80,50,90,10,90,TOTAL:
60,80,90,80,90,90,60,90,RM9.50
10,95,50,95,50,99,10,99,CASH 9.50\r
"""
KEY = {
    "company": "ACME, SONS & CO", "date": "1/2/2018", "address": "27, JALAN DEDAP 13, 81100 JOHOR.",
    "total": "9.50",
}  # fmt: skip
PAGE = picture(1, size=(100, 100))


def receipts(count: int = 1, lines: str = LINES, key: Any = KEY) -> dict[str, Any]:
    files: dict[str, Any] = {}
    for number in range(count):
        name = f"{number:03}"
        files |= {
            f"data/box/{name}.csv": lines + f"1,1,9,1,9,5,1,5,NO {number}\n",
            f"data/key/{name}.json": key,
            f"data/img/{name}.jpg": PAGE,
        }
    return files


def sroie(tmp_path: Path, files: dict[str, Any], **settings: Any) -> Path:
    release = write_release(tmp_path / "in", files)
    return Sroie(from_file=release, out=tmp_path / "out", **settings).prepare()


def test_a_receipt_is_words_boxes_tags_and_fields(tmp_path: Path) -> None:
    folder = sroie(tmp_path, receipts(), val=0.0, test=0.0)
    (sample,) = read_shards(folder, "train").values()
    assert sample["jpg"] == PAGE
    found = about(sample)
    tagged = {
        name: [
            (number, word)
            for number, (word, tag) in enumerate(zip(found["words"], found["tags"], strict=True))
            if tag.endswith(name)
        ]
        for name in FIELDS
    }
    assert [word for _, word in tagged["company"]] == ["ACME", ",", "SONS", "&", "CO"]
    assert [word for _, word in tagged["address"]] == [
        "27", ",", "JALAN", "DEDAP", "13", ",", "81100", "JOHOR", ".",
    ]  # fmt: skip
    assert tagged["date"] == []  # nowhere on the page
    ((number, total),) = tagged["total"]
    assert total == "9.50"
    assert found["words"][number - 1 : number + 1] == ["RM", "9.50"]  # neither the sub total nor the cash
    assert found["boxes"][number] == pytest.approx([0.7, 0.8, 0.9, 0.9])
    assert number in found["glued"]
    assert found["fields"] == KEY
    assert (found["receipt_id"], found["group"]) == ("000", "000")
    assert len(found["words"]) == len(found["boxes"]) == len(found["tags"])
    assert note(folder)["left_out"] == {
        "values of date that stand nowhere on their page (kept, without tags)": 1,
    }


@pytest.mark.parametrize(
    ("rows", "place"),
    [
        (["TOTAL QTY 9", "TOTAL 9", "CASH 9"], 1),
        (["CASH 9", "GST TOTAL 9"], 1),
        (["SUBTOTAL 9", "CASH 9"], 0),
        (["AMOUNT 9", "CASH 9"], 0),
    ],
)
def test_the_total_is_where_its_row_says_so(tmp_path: Path, rows: list[str], place: int) -> None:
    lines = "".join(
        f"1,{10 * n},90,{10 * n},90,{10 * n + 8},1,{10 * n + 8},{r}\n" for n, r in enumerate(rows)
    )
    folder = sroie(tmp_path, receipts(lines=lines, key={"total": "9"}), val=0.0, test=0.0)
    (sample,) = read_shards(folder, "train").values()
    found = about(sample)
    numbers = [n for n, word in enumerate(found["words"]) if word == "9"]
    assert [n for n, tag in enumerate(found["tags"]) if tag != "O"] == [numbers[place]]


def test_boxes_over_the_edge_are_cut_and_counted(tmp_path: Path) -> None:
    lines = "-5,10,50,10,50,20,-5,20,ACME\n10,10,500,10,500,20,10,20,CO\n"
    folder = sroie(tmp_path, receipts(lines=lines, key={"company": "ACME CO"}), val=0.0, test=0.0)
    (sample,) = read_shards(folder, "train").values()
    assert about(sample)["boxes"][:2] == [[0.0, 0.1, 0.5, 0.2], [0.1, 0.1, 1.0, 0.2]]
    assert note(folder)["left_out"] == {"lines that reach over the edge of their page (cut there)": 2}


@pytest.mark.parametrize("line", ["1,2,3,4,5,6,7,8", "1,2,3,4,5,6,7,x,TOTAL", "TOTAL", "1.5,2,3,4,5,6,7,8,T"])
def test_lines_that_are_not_as_released(tmp_path: Path, line: str) -> None:
    with pytest.raises(
        ValueError, match=r"box/000\.csv, line 2, .*is not x1,y1,\.\.\.,x4,y4,TEXT with whole"
    ):
        sroie(tmp_path, receipts(lines=f"1,2,3,4,5,6,7,8,A\n{line}\n"))


def test_a_release_that_lacks_something(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lacks box/NNN\.csv"):
        sroie(tmp_path / "a", {"img/000.jpg": PAGE})
    files = receipts(2)
    del files["data/key/001.json"]
    with pytest.raises(ValueError, match=r"lacks key/001\.json"):
        sroie(tmp_path / "b", files)
    with pytest.raises(ValueError, match="is not as released"):
        sroie(tmp_path / "c", receipts(key=["ACME"]))
    files = receipts(4)
    del files["data/img/001.jpg"]
    files |= {"data/img/002.jpg": b"no picture", "data/box/003.csv": "\n"}
    folder = sroie(tmp_path / "d", files, val=0.0, test=0.0)
    assert set(read_shards(folder, "train")) == {"000"}
    assert note(folder)["left_out"] == {
        "receipts without a picture": 1, "receipts with a broken picture": 1, "receipts without words": 1,
        "values of date that stand nowhere on their page (kept, without tags)": 1,
    }  # fmt: skip


def test_a_receipt_without_its_lines_is_missed(tmp_path: Path) -> None:
    files = receipts(2)
    del files["data/box/001.csv"]
    with pytest.raises(ValueError, match=r"lacks box/001\.csv"):
        sroie(tmp_path, files)


@pytest.mark.parametrize(("value", "said"), [(None, "null"), (9.5, r"9\.5"), (["9"], r"\[\"9\"\]")])
def test_a_field_that_is_no_text(value: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"key/000\.json in .*: total is {said}: it is text, \"\" where"):
        sroie(tmp_path, receipts(key={**KEY, "total": value}))


def test_accents_in_either_encoding(tmp_path: Path) -> None:
    files = receipts()
    for name, encoding in (("utf", "utf-8"), ("latin", "latin-1")):
        files["data/box/000.csv"] = "1,1,9,1,9,9,1,9,CAFÉ\n".encode(encoding)
        folder = sroie(tmp_path / name, files, val=0.0, test=0.0)
        (sample,) = read_shards(folder, "train").values()
        assert about(sample)["words"] == ["CAFÉ"]


def test_the_split_is_by_a_hash(tmp_path: Path) -> None:
    files = receipts(20)
    files["data/box/001.csv"] = files["data/box/000.csv"]  # the same receipt twice
    folder = sroie(tmp_path / "a", files, val=0.1, test=0.25)
    parts = {split: set(read_shards(folder, split)) for split in ("train", "val", "test")}
    assert {split: len(found) for split, found in parts.items()} == {"train": 13, "val": 2, "test": 5}
    assert any({"000", "001"} <= found for found in parts.values())
    again = sroie(tmp_path / "b", files, val=0.1, test=0.25, seed=1)
    assert set(read_shards(again, "test")) != parts["test"]
    with pytest.raises(ValueError, match=r"val=0\.7 and test=0\.5 are shares of all receipts"):
        Sroie(val=0.7, test=0.5)
    assert set(read_shards(sroie(tmp_path / "c", files, val=0.0, test=1.0), "test")) == {
        f"{number:03}" for number in range(20)
    }


def test_the_released_receipts(public_data: Path, tmp_path: Path) -> None:
    folder = Sroie(from_file=public_data / "sroie", out=tmp_path / "out", max_side=64).prepare()
    counts = {split: found["samples"] for split, found in note(folder)["splits"].items()}
    assert counts == {"train": 126, "val": 18, "test": 36}
    samples = [about(s) for split in counts for s in read_shards(folder, split).values()]
    found = {name: sum(f"B-{name}" in sample["tags"] for sample in samples) for name in FIELDS}
    assert found == {"company": 177, "date": 180, "address": 174, "total": 180}
    assert note(folder)["left_out"] == {
        "values of address that stand nowhere on their page (kept, without tags)": 6,
        "values of company that stand nowhere on their page (kept, without tags)": 3,
    }
    for sample in samples:
        assert all(0 <= x0 <= x1 <= 1 and 0 <= y0 <= y1 <= 1 for x0, y0, x1, y1 in sample["boxes"])
        assert len(sample["words"]) == len(sample["boxes"]) == len(sample["tags"])


def entity(number: int, label: str, *texts: str) -> dict[str, Any]:
    words = [{"text": text, "box": [10 * n, 10, 10 * n + 8, 20]} for n, text in enumerate(texts)]
    return {"id": number, "text": " ".join(texts), "box": [0, 10, 90, 20], "label": label, "words": words,
            "linking": []}  # fmt: skip


FORM = {
    "form": [
        entity(0, "header", "ACCOUNT", "FORM"),
        entity(1, "question", "Name:"),
        entity(2, "answer", "Ann", "B."),
        entity(3, "other", "page", "", " "),
    ]
}  # fmt: skip


def forms(train: int = 1, form: Any = FORM) -> dict[str, Any]:
    files: dict[str, Any] = {}
    for folder, count in (("training_data", train), ("testing_data", 1)):
        for number in range(count):
            files[f"dataset/{folder}/annotations/{number}.json"] = form
            files[f"dataset/{folder}/images/{number}.png"] = picture(number, kind="PNG", size=(100, 40))
    return files


def funsd(tmp_path: Path, files: dict[str, Any], **settings: Any) -> Path:
    return Funsd(from_file=write_release(tmp_path / "in", files), out=tmp_path / "out", **settings).prepare()


def test_a_form_is_words_boxes_and_tags(tmp_path: Path) -> None:
    folder = funsd(tmp_path, forms())
    for split in ("train", "test"):
        (sample,) = read_shards(folder, split).values()
        assert sample["png"] == picture(0, kind="PNG", size=(100, 40))
        assert about(sample) == {
            "words": ["ACCOUNT", "FORM", "Name:", "Ann", "B.", "page"],
            "boxes": [[x / 100, 0.25, x / 100 + 0.08, 0.5] for x in (0, 10, 0, 0, 10, 0)],
            "glued": [],
            "tags": ["B-header", "I-header", "B-question", "B-answer", "I-answer", "O"],
            "form_id": "0",
            "group": "0",
        }


def test_validation_forms_are_held_out(tmp_path: Path) -> None:
    folder = funsd(tmp_path, forms(30), val=2)
    counts = {split: found["samples"] for split, found in note(folder)["splits"].items()}
    assert counts == {"train": 28, "val": 2, "test": 1}


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"form": [entity(4, "title", "A")]}, "entity 4 is 'title': it is header, question, answer or other"),
        (
            {"form": [{**entity(4, "other"), "words": [{"text": "A", "box": [9, 1, 3, 4]}]}]},
            "entity 4 has a w",
        ),
        ({"form": [{**entity(4, "other"), "words": [{"text": "A", "box": [9, 1]}]}]}, r"the box \[9, 1\]"),
        ({"form": [{"id": 1}]}, "no field 'label'"),
    ],
)
def test_forms_that_are_not_as_released(tmp_path: Path, form: Any, said: str) -> None:
    with pytest.raises(ValueError, match=rf"annotations/0\.json in .*is not as released: .*{said}"):
        funsd(tmp_path, forms(form=form))


def test_a_release_of_forms_that_lacks_something(tmp_path: Path) -> None:
    files = {name: content for name, content in forms().items() if "testing" not in name}
    with pytest.raises(ValueError, match=r"lacks testing_data/annotations/\*\.json"):
        funsd(tmp_path / "a", files)
    files = forms(3)
    del files["dataset/training_data/images/1.png"]
    over = {"form": [{**entity(4, "other"), "words": [{"text": "A", "box": [90, 1, 103, 4]}]}]}
    files |= {"dataset/training_data/annotations/0.json": over}
    files |= {"dataset/training_data/annotations/2.json": {"form": []}}
    folder = funsd(tmp_path / "b", files)
    assert note(folder)["left_out"] == {
        "forms without a picture that can be read": 1, "forms without words": 1,
        "words that reach over the edge of their page (cut there)": 1,
    }  # fmt: skip
