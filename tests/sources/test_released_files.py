"""Releases as folders, zips and tars: the same files under the same names, errors in one line."""

from __future__ import annotations

import os
import tarfile
import zipfile
from pathlib import Path

import pytest
from releases import write_release

from mmlab.sources.files import open_release
from mmlab.sources.mosi import Mosi
from mmlab.sources.wnut17 import Wnut17

FILES = {
    "set/train/1.png": b"one",
    "set/deep/er/train/1.png": b"deeper",
    "set/test/1.png": b"two",
    "set/notes.json": '\ufeff{"a": [1]}',
    "set/lines.txt": "first\r\n\nsecond\n",
    ".DS_Store": b"x",
    "__MACOSX/set/train/1.png": b"x",
}
WNUT = dict.fromkeys(("wnut17train.conll", "emerging.dev.conll", "emerging.test.annotated"), "one\tO\n")


def as_zip(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in FILES:
            archive.write(folder / name, name)
    return path


def as_tar(folder: Path, path: Path, mode: str) -> Path:
    with tarfile.open(path, mode) as archive:
        for name in FILES:
            archive.add(folder / name, f"./{name}")
    return path


@pytest.fixture(params=["folder", "zip", "tar", "tar.gz"])
def release(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = write_release(tmp_path / "folder", FILES)
    if request.param == "folder":
        return folder
    path = tmp_path / f"archive.{request.param}"
    if request.param == "zip":
        return as_zip(folder, path)
    return as_tar(folder, path, "w:gz" if request.param == "tar.gz" else "w")


def test_files_are_found_by_the_end_of_their_names(release: Path) -> None:
    with open_release(release) as files:
        assert files.names == sorted(name for name in FILES if name.startswith("set/"))
        assert files.find("train/1.png") == "set/train/1.png", "the one nearest to the top"
        assert files.find("deep/er/train/1.png") == "set/deep/er/train/1.png"
        assert files.find("set/test/1.png") == "set/test/1.png"
        assert files.find("rain/1.png") is files.find("2.png") is None
        assert files.read("set/test/1.png") == b"two"
        assert files.parse("set/notes.json", lambda content: content["a"][0]) == 1
        assert files.parse_lines("set/lines.txt", str) == ["first", "second"]


def test_the_digest_tells_other_annotations_and_other_numbers_of_pictures(tmp_path: Path) -> None:
    def digest(name: str, changes: dict[str, object]) -> str:
        with open_release(write_release(tmp_path / name, {**FILES, **changes})) as files:
            return files.digest(["set/notes.json"])

    first = digest("first", {})
    assert first == digest("same", {"set/lines.txt": "other", "set/more.txt": "x"})
    assert first != digest("annotation", {"set/notes.json": '{"a": [2]}'})
    assert first != digest("pictures", {"set/train/2.png": b"x"})
    labels = [digest(name, {f"set/{name}.wav": b"same"}) for name in ("happy", "angry")]
    assert labels[0] != labels[1], "of some releases names are the labels"
    (tmp_path / "first" / "set" / "train" / "gone.png").symlink_to(tmp_path / "nowhere")
    assert first != digest("first", {})  # counted, and nothing else
    assert first != digest("longer", {"set/train/1.png": b"longer than it was"})


def test_a_link_to_a_folder_above_is_not_followed_for_ever(tmp_path: Path) -> None:
    pictures = write_release(tmp_path / "elsewhere", {"1.png": b"one"})
    folder = write_release(tmp_path / "set", {"a.json": "[]"})
    (folder / "pictures").symlink_to(pictures)
    (folder / "again").symlink_to(folder)
    with open_release(folder) as files:
        assert files.names == ["a.json", "pictures/1.png"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": [', "notes.json in .* is not as released: Expecting value"),
        ('{"b": 1}', "notes.json in .* is not as released: no field 'a'"),
        ('{"a": []}', "notes.json in .* is not as released: list index out of range"),
        ("[" * 100_000, "notes.json in .* is not as released: "),
        (b"\xff", "notes.json in .* is no UTF-8"),
    ],
)
def test_a_wrong_annotation_file_is_named(tmp_path: Path, content: str | bytes, message: str) -> None:
    with open_release(write_release(tmp_path, {"notes.json": content})) as files:
        with pytest.raises(ValueError, match=message) as caught:
            files.parse("notes.json", lambda value: value["a"][0])
        assert "\n" not in str(caught.value)


def test_a_wrong_line_is_named(tmp_path: Path) -> None:
    with (
        open_release(write_release(tmp_path, {"numbers.txt": "1\n2\nthree\n"})) as files,
        pytest.raises(ValueError, match=r"numbers\.txt, line 3, in .* is not as released: invalid"),
    ):
        files.parse_lines("numbers.txt", int)


def test_no_release(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no file or folder"), open_release(tmp_path / "nothing"):
        pass
    for name, content in (("a.txt", b"hello"), ("b.tar.gz", b"\x1f\x8bhello"), ("c.zip", b"")):
        write_release(tmp_path, {name: content})
        broken = pytest.raises(ValueError, match="is no folder, zip or tar, or it is broken")
        with broken, open_release(tmp_path / name):
            pass


@pytest.mark.parametrize("name", ["unaligned_50.pkl", "features.PICKLE", "audio_features.p"])
def test_a_pickle_file_is_not_loaded(tmp_path: Path, name: str) -> None:
    """Neither as a release, nor in a folder that lacks what the release has."""
    write_release(tmp_path, {f"folder/{name}": b"cos\nsystem\n(S'touch loaded'\ntR."})
    refused = r"reading a pickle file can run any code.*convert it as docs/fusion\.md shows"
    with pytest.raises(ValueError, match=refused) as caught, open_release(tmp_path / "folder" / name):
        pass
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=rf"it lacks transcripts\.csv.*it holds {name}; {refused}"):
        Mosi(from_file=tmp_path / "folder", out=tmp_path / "out").prepare()
    with open_release(write_release(tmp_path / "other", {"a.txt": "a"})) as files:
        assert "pickle" not in files.describe()


def test_a_broken_member_of_an_archive(tmp_path: Path) -> None:
    folder = write_release(tmp_path / "folder", dict.fromkeys(FILES, b"some content" * 50))
    packed = bytearray(as_zip(folder, tmp_path / "a.zip").read_bytes())
    start = packed.index(b"set/test/1.png") + len("set/test/1.png")
    packed[start : start + 8] = bytes(8)
    (tmp_path / "a.zip").write_bytes(packed)
    with open_release(tmp_path / "a.zip") as files:
        with pytest.raises(ValueError, match=r"a\.zip is cut short or broken"):
            files.read("set/test/1.png")
        assert len(files.read("set/train/1.png")) == 600


def test_a_picture_above_the_limit_is_not_read(tmp_path: Path) -> None:
    write_release(tmp_path, {"1.png": b""})
    os.truncate(tmp_path / "1.png", 2**40)  # takes no room on the disk
    with (
        open_release(tmp_path) as files,
        pytest.raises(ValueError, match=r"1\.png in .* has 1099511627776 bytes, more than"),
    ):
        files.read("1.png")


def test_of_two_releases_in_one_folder_none_is_taken(tmp_path: Path) -> None:
    both = {f"{name}/{file}": content for name in ("one", "two") for file, content in WNUT.items()}
    release = write_release(tmp_path / "both", both)
    with pytest.raises(ValueError, match=r"several releases or copies \(one/.*, two/.*\): name"):
        Wnut17(from_file=release, out=tmp_path / "out").prepare()
    copy = write_release(tmp_path / "nested", {**WNUT, **both})
    assert Wnut17(from_file=copy, out=tmp_path / "out").prepare() == tmp_path / "out", (
        "the nearest to the top"
    )


@pytest.mark.parametrize("split", sorted(WNUT))
def test_a_split_that_is_empty_is_refused(split: str, tmp_path: Path) -> None:
    release = write_release(tmp_path / "in", {**WNUT, split: "\n"})
    with pytest.raises(ValueError, match=f"{split} in .* has no sample: fetch it again"):
        Wnut17(from_file=release, out=tmp_path / "out").prepare()


def test_what_is_not_prepared_yet_is_named_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"folder once: --data\.source\.init_args\.from_file FOLDER"):
        Wnut17(out=tmp_path / "nothing").prepare()


def test_what_a_folder_holds_instead(tmp_path: Path) -> None:
    (tmp_path / "gone.json").symlink_to(tmp_path / "nowhere")
    unreadable = pytest.raises(ValueError, match=r"cannot read gone\.json in .*: No such file")
    with open_release(tmp_path) as files, unreadable:
        files.text("gone.json")
    (tmp_path / "gone.json").unlink()
    with open_release(tmp_path) as files:
        assert files.describe() == "it is empty"
    write_release(tmp_path, {"a/b.txt": "", "c.txt": "", "train2017.zip": ""})
    with open_release(tmp_path) as files:
        assert files.describe() == "it holds a/, c.txt, train2017.zip; unpack the archives in it"
    (tmp_path / "train2017.zip").rename(tmp_path / "a" / "train2017.zip")
    with open_release(tmp_path) as files:
        assert files.describe() == "it holds a/, c.txt; unpack the archives in it"
    write_release(tmp_path, {f"{number:02}.txt": "" for number in range(20)})
    with open_release(tmp_path) as files:
        assert files.describe().startswith("it holds 00.txt, 01.txt, 02.txt")
        assert "and 14 more; unpack" in files.describe()
