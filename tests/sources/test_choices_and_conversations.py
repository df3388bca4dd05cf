"""ScienceQA and LLaVA's conversations: tiny releases -> samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from releases import about, note, picture, read_shards, write_release

from mmlab.sources.conversations import Conversations
from mmlab.sources.science_qa import ScienceQa


def problem(split: str, *, image: bool, **changes: Any) -> dict[str, Any]:
    return {
        "question": "Which is farthest north?", "choices": ["West Virginia", "Louisiana", "Arizona"],
        "answer": 0, "hint": "", "image": "image.png" if image else None, "task": "closed choice",
        "grade": "grade2", "subject": "social science", "topic": "geography", "category": "Geography",
        "skill": "Read a map", "lecture": "Maps have four directions.", "solution": "Look.", "split": split,
    } | changes  # fmt: skip


def science(**changes: Any) -> dict[str, Any]:
    problems = {
        "1": problem("train", image=True), "2": problem("train", image=False, hint="A hint."),
        "3": problem("val", image=True), "4": problem("test", image=True, answer=2),
        "5": problem("test", image=True),
    }  # fmt: skip
    splits = {"train": ["1", "2"], "val": ["3"], "test": ["4", "5"], "trainval": ["1", "2", "3"]}
    files: dict[str, Any] = {
        "data/scienceqa/problems.json": problems,
        "data/scienceqa/pid_splits.json": splits,
    }
    for n, name in enumerate(("train/1", "val/3", "test/4")):
        files[f"images/{name}/image.png"] = picture(n, kind="PNG")
    return {**files, **changes}


def test_science_qa(tmp_path: Path) -> None:
    path = write_release(tmp_path / "in", science())
    folder = ScienceQa(from_file=path, out=tmp_path / "out").prepare()
    train, test = read_shards(folder, "train"), read_shards(folder, "test")
    assert set(train["2"]) == {"json"}, "a question without a picture"
    assert about(train["2"])["hint"] == "A hint."
    assert test["4"]["png"] == picture(2, kind="PNG")
    assert about(test["4"]) == {
        "question": "Which is farthest north?", "choices": ["West Virginia", "Louisiana", "Arizona"],
        "label": 2, "answer": "Arizona", "lecture": "Maps have four directions.", "solution": "Look.",
        "subject": "social science", "topic": "geography", "category": "Geography", "grade": "grade2",
        "question_id": "4", "group": "4",
    }  # fmt: skip
    assert note(folder)["splits"]["test"]["left_out"] == {"file missing": 1}
    folder = ScienceQa(only_pictures=True, from_file=path, out=tmp_path / "pictures").prepare()
    assert list(read_shards(folder, "train")) == ["1"]
    assert note(folder)["left_out"] == {"questions without a picture": 1}


def test_science_qa_that_is_wrong(tmp_path: Path) -> None:
    wrong = science()
    wrong["data/scienceqa/problems.json"]["4"]["answer"] = 3
    with pytest.raises(ValueError, match=r"problems\.json in .* is not as released: list index out of range"):
        ScienceQa(from_file=write_release(tmp_path / "a", wrong), out=tmp_path / "out").prepare()
    wrong = science(**{"data/scienceqa/pid_splits.json": {"train": ["9"], "val": [], "test": []}})
    with pytest.raises(ValueError, match=r"problems\.json in .* is not as released: no field '9'"):
        ScienceQa(from_file=write_release(tmp_path / "b", wrong), out=tmp_path / "out").prepare()


def said(*texts: str, first: str = "human") -> list[dict[str, str]]:
    other = {"human": "gpt", "gpt": "human"}
    speakers = [first if n % 2 == 0 else other[first] for n in range(len(texts))]
    return [{"from": speaker, "value": text} for speaker, text in zip(speakers, texts, strict=True)]


ROWS: list[dict[str, Any]] = [
    {"id": "000000215677", "image": "coco/train2017/000000215677.jpg",
     "conversations": said("<image>\nHow many colors?", "Many. ", "Is it old?", "Yes.")},
    {"id": "two", "image": ["a.jpg", "b.png"],
     "conversations": said("Left <image> or right\n<image>", "Right.")},
    {"id": "text", "conversations": [{"from": "system", "value": "Be short."}, *said("Hello.", "Hi.")]},
    {"id": "text", "conversations": said("Hello again.", "Hi.")},
    {"id": "missing", "image": "nothing.jpg", "conversations": said("<image>", "A cat.")},
    {"id": "no marker", "image": "a.jpg", "conversations": said("What?", "A cat.")},
    {"id": "first", "conversations": said("Hi.", "Hello.", first="gpt")},
    {"id": "odd", "conversations": said("Hi.", "Hello.", "And?")},
    {"id": "empty", "conversations": said("Hi.", " ")},
    {"id": "none", "conversations": []},
]  # fmt: skip


def release(rows: Any) -> dict[str, Any]:
    return {
        "llava.json": rows,
        "coco/train2017/000000215677.jpg": picture(1),
        "a.jpg": picture(2),
        "b.png": picture(3, kind="PNG"),
    }


def test_conversations(tmp_path: Path) -> None:
    folder = Conversations(
        from_file=write_release(tmp_path / "in", release(ROWS)), out=tmp_path / "out"
    ).prepare()
    train = read_shards(folder, "train")
    assert sorted(train) == ["0-000000215677", "1-two", "2-text", "3-text"]
    assert train["0-000000215677"]["jpg"] == picture(1)
    assert about(train["0-000000215677"]) == {
        "turns": [
            {"user": "How many colors?", "assistant": "Many.", "images": 1},
            {"user": "Is it old?", "assistant": "Yes.", "images": 0},
        ],
        "conversation_id": "000000215677", "group": "000000215677",
    }  # fmt: skip
    assert set(train["1-two"]) == {"0.jpg", "1.png", "json"}
    assert about(train["1-two"])["turns"] == [{"user": "Left or right", "assistant": "Right.", "images": 2}]
    assert about(train["2-text"])["system"] == "Be short."
    assert note(folder)["splits"]["train"]["left_out"] == {"file missing": 1}
    assert note(folder)["left_out"] == {
        "conversations whose markers do not match their pictures": 1,
        "conversations whose speakers do not alternate": 3,
        "conversations with an empty answer, or a picture in one": 1,
    }


def test_conversations_about_one_picture_are_held_out_together(tmp_path: Path) -> None:
    rows = [
        {"id": str(n), "image": "a.jpg" if n % 2 == 0 else "b.png", "conversations": said("<image>", f"{n}")}
        for n in range(20)
    ]
    rows += [{"id": f"t{n}", "conversations": said("Hi.", f"{n}")} for n in range(18)]
    folder = Conversations(
        from_file=write_release(tmp_path / "in", release(rows)), out=tmp_path / "out"
    ).prepare()
    train, val = read_shards(folder, "train"), read_shards(folder, "val")
    assert len(train) + len(val) == 38
    for name in ("jpg", "png"):
        homes = {
            split
            for split, samples in (("train", train), ("val", val))
            for m in samples.values()
            if name in m
        }
        assert len(homes) == 1


def test_which_file_is_to_be_read(tmp_path: Path) -> None:
    path = write_release(tmp_path / "in", {**release(ROWS), "more.json": ROWS[:1]})
    with pytest.raises(
        ValueError, match=r"has 2 JSON files, llava\.json, more\.json: say which one \(--file NAME"
    ):
        Conversations(from_file=path, out=tmp_path / "out").prepare()
    folder = Conversations(file="more.json", from_file=path, out=tmp_path / "out").prepare()
    assert list(read_shards(folder, "train")) == ["0-000000215677"]
    with pytest.raises(ValueError, match="lacks a JSON file; it holds x"):
        Conversations(from_file=write_release(tmp_path / "none", {"x": ""}), out=tmp_path / "no").prepare()
    path = write_release(tmp_path / "wrong", release([{"id": "1"}]))
    with pytest.raises(ValueError, match=r"llava\.json in .* is not as released: no field 'conversations'"):
        Conversations(from_file=path, out=tmp_path / "no").prepare()
