"""easy-VQA: a small copy of the package -> shards; and what every source of a release has in common."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
from fetching import fetched
from releases import about, note, picture, read_shards, write_release

from mmlab.sources import easy_vqa as easy_vqa_module
from mmlab.sources.easy_vqa import EasyVqa

TRAIN = [[f"what is shape {number}?", "circle", number // 3] for number in range(30)]
TEST = [["is there a blue shape?", "yes", 0], ["what color is it?", "teal", 0], ["is it red?", "no", 1]]


def package() -> dict[str, Any]:
    """Ten training pictures of three questions, two test pictures."""
    data = "easy_vqa/data"
    files: dict[str, Any] = {f"{data}/train/questions.json": TRAIN, f"{data}/test/questions.json": TEST}
    files |= {f"{data}/train/images/{n}.png": picture(n, kind="PNG") for n in range(10)}
    files |= {f"{data}/test/images/{n}.png": picture(500 + n, kind="PNG") for n in range(2)}
    return files


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("easy"), package())


def test_samples(release: Path, tmp_path: Path) -> None:
    folder = EasyVqa(val=4, from_file=release, out=tmp_path / "out").prepare()
    train, val, test = (read_shards(folder, split) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (6, 12, 3)
    assert about(test["test-1"]) == {
        "question": "what color is it?", "answer": "teal", "answers": ["teal"], "question_id": "test-1",
        "image_id": "test-0", "answer_type": "color", "group": "test-0",
    }  # fmt: skip
    assert test["test-1"]["png"] == picture(500, kind="PNG")
    for key, members in train.items():
        number = int(key.removeprefix("train-"))
        assert set(members) == {"png", "json"}
        assert members["png"] == picture(number, kind="PNG")
        assert about(members)["image_id"] == key
        assert about(members)["questions"] == [
            {"question": question, "answer": "circle", "answers": ["circle"], "question_id": f"train-{row}"}
            for row, (question, _, image) in enumerate(TRAIN)
            if image == number
        ]
    assert {about(members)["image_id"] for members in val.values()} == {
        f"train-{n}" for n in range(10)
    } - set(train)
    found = note(folder)
    assert found["splits"]["train"] == {"samples": 6, "media": 6, "questions": 18, "left_out": {}}
    assert (found["source"], found["licence"]) == ("easy_vqa", "MIT")


def test_one_question_a_sample_in_training_too(release: Path, tmp_path: Path) -> None:
    folder = EasyVqa(val=0, per_picture=False, from_file=release, out=tmp_path / "out").prepare()
    assert len(read_shards(folder, "train")) == 30
    assert sorted(path.name for path in folder.glob("val-*")) == []


def test_the_wheel_is_as_good_as_a_folder(release: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "easy_vqa.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in package():
            archive.write(release / name, name)
    first = EasyVqa(val=4, from_file=wheel, out=tmp_path / "first").prepare()
    second = EasyVqa(val=4, from_file=release, out=tmp_path / "second").prepare()
    for split in ("train", "val", "test"):
        name = f"{split}-000000.tar"
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert note(first)["version"] == note(second)["version"]


def test_prepared_once(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMLAB_CACHE", str(tmp_path))
    first = EasyVqa(val=4, from_file=release).prepare()
    written = (first / "dataset.json").stat().st_mtime_ns

    def no_network(*arguments: object, **settings: object) -> None:
        raise AssertionError("asked for the package")

    monkeypatch.setattr(easy_vqa_module, "resolve_wheel", no_network)
    assert EasyVqa(val=4).prepare() == first == EasyVqa(val=4, from_file=release).prepare()
    assert (first / "dataset.json").stat().st_mtime_ns == written
    assert EasyVqa(val=3, from_file=release).prepare() != first
    changed = write_release(
        tmp_path / "changed", {**package(), "easy_vqa/data/test/questions.json": TEST[:2]}
    )
    assert EasyVqa(val=4, from_file=changed).prepare() != first


def test_pictures_that_are_missing_or_broken_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = package()
    del files["easy_vqa/data/test/images/1.png"]
    files["easy_vqa/data/train/images/3.png"] = b"no picture"
    release = write_release(tmp_path / "easy", files)
    folder = EasyVqa(val=0, from_file=release, out=tmp_path / "out").prepare()
    splits = note(folder)["splits"]
    assert splits["train"] == {"samples": 9, "media": 9, "questions": 27, "left_out": {"file broken": 1}}
    assert splits["test"] == {"samples": 2, "media": 2, "left_out": {"file missing": 1}}
    assert "left out of test: 1 of 3: file missing" in capsys.readouterr().err


def test_a_folder_that_is_something_else(tmp_path: Path) -> None:
    release = write_release(tmp_path / "other", {"train/questions.json": [], "thesis.tex": "x", "a.zip": "x"})
    with pytest.raises(
        ValueError, match=r"is not the release of easy_vqa: it lacks test/questions\.json; "
    ) as e:
        EasyVqa(from_file=release, out=tmp_path / "out").prepare()
    assert "it holds a.zip, thesis.tex, train/; unpack the archives in it.\nThe release is" in str(e.value)
    assert not (tmp_path / "out").exists()


def test_a_split_without_its_pictures_is_refused(tmp_path: Path) -> None:
    files = package()
    for number in range(10):
        del files[f"easy_vqa/data/train/images/{number}.png"]
    release = write_release(tmp_path / "easy", files)
    lost = r"6 of 6 samples of train lack a file that can be read, such as train/images/\d\.png; it holds"
    with pytest.raises(ValueError, match=lost) as caught:
        EasyVqa(val=4, from_file=release, out=tmp_path / "nothing").prepare()
    assert "it holds easy_vqa/.\nThe release is" in str(caught.value)
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"questions": []}, "test/questions.json in .* is not as released"),
        ([["what?", "red"]], "test/questions.json in .* is not as released"),
        ('[["what?"', "test/questions.json in .* is not as released"),
    ],
)
def test_wrong_questions(tmp_path: Path, rows: object, message: str) -> None:
    release = write_release(tmp_path / "easy", {**package(), "easy_vqa/data/test/questions.json": rows})
    with pytest.raises(ValueError, match=message) as caught:
        EasyVqa(val=4, from_file=release, out=tmp_path / "out").prepare()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("val", [-1, 10])
def test_too_many_pictures_held_out(release: Path, tmp_path: Path, val: int) -> None:
    with pytest.raises(ValueError, match=f"val is {val}: it takes from 0 to 9 of the 10 pictures"):
        EasyVqa(val=val, from_file=release, out=tmp_path / "out").prepare()


@pytest.mark.slow
def test_the_released_package() -> None:
    """Numbers that the release itself states."""
    folder = fetched(EasyVqa().prepare)
    splits = note(folder)["splits"]
    assert (splits["train"]["samples"], splits["test"]["samples"]) == (3500, 9673)
    assert splits["train"]["questions"] + splits["val"]["samples"] == 38575
    assert not any(split["left_out"] for split in splits.values())
    train, val, test = (read_shards(folder, split) for split in ("train", "val", "test"))
    pictures = {
        split: {members["png"] for members in samples.values()}
        for split, samples in (("train", train), ("val", val), ("test", test))
    }
    assert {split: len(found) for split, found in pictures.items()} == {
        "train": 3500,
        "val": 500,
        "test": 1000,
    }
    assert len(set.union(*pictures.values())) == 5000, "no picture is in two splits"
    asked = [about(members) for members in test.values()]
    assert sum(question["answer_type"] == "yes/no" for question in asked) == 7136
    answers = {question["answer"] for question in asked}
    assert len(answers) == 13
