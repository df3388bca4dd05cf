"""VQA, GQA and DAQUAR: tiny releases -> samples of questions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from releases import about, note, picture, read_shards, write_release

from mmlab.sources.daquar import Daquar
from mmlab.sources.gqa import Gqa
from mmlab.sources.vqa import Vqa

TEN = ["net", "net", "netting", "net", "net", "mesh", "net", "net", "net", "a net"]


def vqa_answer(question: int, image: int) -> dict[str, Any]:
    answers = [
        {"answer": answer, "answer_confidence": "maybe", "answer_id": n} for n, answer in enumerate(TEN, 1)
    ]
    return {
        "question_type": "what is this", "multiple_choice_answer": "net", "answers": answers,
        "image_id": image, "answer_type": "other", "question_id": question,
    }  # fmt: skip


def vqa(*, prefix: str = "v2_", parts: tuple[str, ...] = ("train2014", "val2014")) -> dict[str, Any]:
    """Four photographs and eight questions in each part."""
    files: dict[str, Any] = {}
    for start, part in enumerate(parts):
        asked = [(1000 * start + 10 * image + n, 100 * start + image) for image in range(4) for n in range(2)]
        files[f"{prefix}OpenEnded_mscoco_{part}_questions.json"] = {
            "info": {}, "task_type": "Open-Ended", "data_type": "mscoco", "data_subtype": part, "license": {},
            "questions": [
                {"image_id": image, "question": f"What is {question}?", "question_id": question}
                for question, image in asked
            ],
        }  # fmt: skip
        files[f"{prefix}mscoco_{part}_annotations.json"] = {
            "info": {}, "annotations": [vqa_answer(*pair) for pair in reversed(asked)],
        }  # fmt: skip
        for image in range(4):
            files[f"{part}/COCO_{part}_{100 * start + image:012}.jpg"] = picture(100 * start + image)
    return files


def test_vqa(tmp_path: Path) -> None:
    folder = Vqa(val=1, from_file=write_release(tmp_path / "in", vqa()), out=tmp_path / "out").prepare()
    train, val, test = (read_shards(folder, split) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (3, 2, 8)
    assert test["1021"]["jpg"] == picture(102)
    assert about(test["1021"]) == {
        "question": "What is 1021?", "answer": "net", "answers": TEN, "question_id": 1021, "image_id": 102,
        "question_type": "what is this", "answer_type": "other", "group": "102",
    }  # fmt: skip
    for key, members in train.items():
        assert members["jpg"] == picture(int(key))
        assert [q["question_id"] for q in about(members)["questions"]] == [10 * int(key), 10 * int(key) + 1]
        assert all(q["answers"] == TEN for q in about(members)["questions"])
    assert {about(members)["group"] for members in val.values()} == {"0", "1", "2", "3"} - set(train)


def test_vqa_with_the_photographs_of_2017(tmp_path: Path) -> None:
    files = {name: content for name, content in vqa().items() if not name.endswith(".jpg")}
    files |= {f"train2017/{image:012}.jpg": picture(image) for image in (*range(4), *range(100, 104))}
    folder = Vqa(val=0, from_file=write_release(tmp_path / "in", files), out=tmp_path / "out").prepare()
    assert read_shards(folder, "test")["1021"]["jpg"] == picture(102)


def test_vqa_questions_without_released_answers(tmp_path: Path) -> None:
    files = vqa()
    asked = {"questions": [{"image_id": 7, "question": "Why? ", "question_id": 70}]}
    files["v2_OpenEnded_mscoco_test2015_questions.json"] = asked
    files["test2015/COCO_test2015_000000000007.jpg"] = picture(7)
    del files["v2_mscoco_train2014_annotations.json"]["annotations"][0]
    folder = Vqa(val=1, from_file=write_release(tmp_path / "in", files), out=tmp_path / "out").prepare()
    hidden = about(read_shards(folder, "test2015")["70"])
    assert hidden == {"question": "Why?", "question_id": 70, "image_id": 7, "group": "7"}
    assert note(folder)["left_out"] == {"questions without answers": 1}


def test_okvqa_does_not_say_which_answer_is_the_most_frequent(tmp_path: Path) -> None:
    files = vqa(prefix="")
    for name, content in files.items():
        if name.endswith("_annotations.json"):
            for annotation in content["annotations"]:
                del annotation["multiple_choice_answer"]
    folder = Vqa(val=1, from_file=write_release(tmp_path / "in", files), out=tmp_path / "out").prepare()
    assert about(read_shards(folder, "test")["1021"])["answer"] == "net"


def test_parts_of_vqa(tmp_path: Path) -> None:
    only_val = vqa(parts=("val2014",))
    folder = Vqa(from_file=write_release(tmp_path / "val", only_val), out=tmp_path / "out").prepare()
    assert [path.name for path in folder.glob("*.tar")] == ["test-000000.tar"]
    del only_val["v2_mscoco_val2014_annotations.json"]
    lacking = (
        r"lacks v2_mscoco_val2014_annotations\.json or mscoco_val2014_annotations\.json; it holds v2_Open"
    )
    with pytest.raises(ValueError, match=lacking):
        Vqa(from_file=write_release(tmp_path / "half", only_val), out=tmp_path / "more").prepare()
    with pytest.raises(
        ValueError, match=r"lacks v2_OpenEnded_mscoco_train2014.*, .*val2014_ann.*; it is empty"
    ):
        Vqa(from_file=write_release(tmp_path / "none", {"x/.y": ""}), out=tmp_path / "more").prepare()


def test_an_answer_to_no_question(tmp_path: Path) -> None:
    files = vqa()
    files["v2_mscoco_val2014_annotations.json"]["annotations"].append(vqa_answer(5, 5))
    with pytest.raises(ValueError, match=r"v2_mscoco_val2014_annotations\.json in .*: no field 5"):
        Vqa(val=1, from_file=write_release(tmp_path / "in", files), out=tmp_path / "out").prepare()


def gqa_question(image: str, question: str, answer: str, kind: str) -> dict[str, Any]:
    return {
        "semantic": [], "entailed": [], "equivalent": [], "question": question, "imageId": image,
        "isBalanced": True, "groups": {"global": None, "local": "13-pond_cart"}, "answer": answer,
        "semanticStr": "", "annotations": {}, "fullAnswer": f"It is {answer}.",
        "types": {"detailed": "exist", "semantic": "rel", "structural": kind},
    }  # fmt: skip


def test_gqa(tmp_path: Path) -> None:
    questions = {
        "train": {f"0{n}": gqa_question("2370799", f"Question {n}?", "yes", "verify") for n in range(3)},
        "val": {"10": gqa_question("1", "Where?", "left", "query")},
        "testdev": {
            "2019": gqa_question("n161313", "Who?", "man", "choose"),
            "20": gqa_question("9", "X?", "y", "query"),
        },
    }
    files: dict[str, Any] = {
        f"questions1.2/{part}_balanced_questions.json": asked for part, asked in questions.items()
    }
    files |= {f"images/{name}.jpg": picture(n) for n, name in enumerate(("2370799", "1", "n161313"))}
    folder = Gqa(from_file=write_release(tmp_path / "in", files), out=tmp_path / "out").prepare()
    train, test = read_shards(folder, "train"), read_shards(folder, "test")
    assert [q["question"] for q in about(train["2370799"])["questions"]] == [
        f"Question {n}?" for n in range(3)
    ]
    assert about(test["2019"]) == {
        "question": "Who?", "answer": "man", "answers": ["man"], "question_id": "2019", "image_id": "n161313",
        "full_answer": "It is man.", "question_type": "choose", "group": "n161313",
    }  # fmt: skip
    assert test["2019"]["jpg"] == picture(2)
    assert note(folder)["splits"]["test"]["left_out"] == {"file missing": 1}


DAQUAR = """what is on the right side of the black telephone in the image3 ?
desk
what is in front of the white board in the image5 ?
table, chair
what is dominant color of the image383 ?
brown
what is this
nothing
"""


def test_daquar(tmp_path: Path) -> None:
    files: dict[str, Any] = {
        "qa.37.raw.train.txt": DAQUAR,
        "qa.37.raw.reduced.test.txt": "how many beds are in this image 7 ?\r\n2\r\n",
    }
    files |= {f"nyu_depth_images/image{n}.png": picture(n, kind="PNG") for n in (3, 5, 7, 383)}
    path = write_release(tmp_path / "in", files)
    folder = Daquar(val=0, per_picture=False, from_file=path, out=tmp_path / "out").prepare()
    train, test = read_shards(folder, "train"), read_shards(folder, "test")
    asked = {about(members)["question"]: about(members)["answer"] for members in train.values()}
    assert asked == {
        "what is on the right side of the black telephone?": "desk",
        "what is in front of the white board?": "table, chair",
        "what is dominant color of the image?": "brown",
    }
    assert about(test["test-0"]) == {
        "question": "how many beds are?", "answer": "2", "answers": ["2"], "question_id": "test-0",
        "image_id": "image7", "group": "image7",
    }  # fmt: skip
    assert test["test-0"]["png"] == picture(7, kind="PNG")
    assert note(folder)["left_out"] == {"questions without a picture or an answer": 1}
    files["qa.37.raw.train.txt"] += "what is in the image3 ?\n"
    with pytest.raises(ValueError, match=r"qa\.37\.raw\.train\.txt in .*: it has 9 lines"):
        Daquar(val=0, from_file=write_release(tmp_path / "odd", files), out=tmp_path / "odd out").prepare()
    with pytest.raises(ValueError, match=r"lacks qa\.894\.raw\.train\.txt, qa\.894\.raw\.test\.txt or "):
        Daquar(classes=894, from_file=path, out=tmp_path / "full").prepare()
