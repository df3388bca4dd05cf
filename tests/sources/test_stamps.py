"""A small package of stamps made here -> shards."""

from __future__ import annotations

import gzip
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from debs import make_deb
from fetching import fetched
from PIL import Image

from mmlab.data.shards import ShardSet
from mmlab.sources import stamps as stamps_module
from mmlab.sources.stamps import Stamps
from mmlab.sources.tuxpaint import read_captions

ROOT = "usr/share/tuxpaint/stamps/"
CONTROL = b"Package: tuxpaint-stamps-default\nVersion: 2022.06.04-1\n"
COUNT = 230


def png(number: int, size: tuple[int, int] = (4, 3)) -> bytes:
    with io.BytesIO() as file:
        Image.new("RGBA", size, (number % 256, number // 256, 77, 128)).save(file, "PNG")
        return file.getvalue()


def package() -> dict[str, bytes]:
    """230 stamps of 215 English captions; pairs of them share a French one."""
    files: dict[str, bytes] = {}
    for number in range(COUNT):
        stem = f"{ROOT}things/kind.{number % 3}/thing-{number}"
        english = number if number < 200 else number // 2
        captions = f"Thing {english}!\nfr.utf8=Chose {english // 2}.\npt_BR.utf8=Coisa {english}.\nde.utf8=\n"
        files[f"{stem}.png"] = png(number)
        files[f"{stem}.txt"] = captions.encode()
        files[f"{stem}_desc.ogg"] = b"english %d" % number
        files[f"{stem}_desc_fr.ogg"] = b"french %d" % number
        files[f"{stem}.dat"] = b"nomirror\n"
    files[f"{ROOT}things/kind.0/thing-0.wav"] = b"moo"
    files[f"{ROOT}things/kind.0/thing-0_desc_pt_BR.wav"] = b"coisa"
    files[f"{ROOT}things/kind.1/thing-1.png"] = png(999, (100, 1000))
    files[f"{ROOT}things/kind.0/thing-0_mirror.png"] = png(1000)
    files[f"{ROOT}things/drawn.svg"] = b"<svg/>"
    files[f"{ROOT}things/drawn.txt"] = b"A drawing.\n"
    files[f"{ROOT}symbols/a.png"] = png(1001)
    files[f"{ROOT}symbols/a.txt"] = b"The letter A.\n"
    files["usr/share/doc/tuxpaint-stamps-default/copyright"] = b"GPL-2"
    files["usr/share/doc/tuxpaint-stamps-default/changelog.gz"] = gzip.compress(b"cow by Ann")
    return files


@pytest.fixture(scope="module")
def deb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("deb") / "stamps.deb"
    path.write_bytes(make_deb(package(), control=CONTROL))
    return path


def stamps(deb: Path, out: Path | None, **settings: object) -> Stamps:
    chosen = {"languages": ["fr", "pt_BR"], "spoken": ["en", "fr", "pt_BR"]} | settings
    return Stamps(**chosen, from_file=deb, out=out)


def read(folder: Path) -> dict[str, dict[str, dict[str, bytes]]]:
    """Members by key by split."""
    result = {}
    for split in ("train", "val", "test"):
        shards = ShardSet.find(f"{split}-*.tar", folder=folder)
        samples = (shards.read(shard, i) for shard, count in enumerate(shards.counts) for i in range(count))
        result[split] = {sample.key: sample.members for sample in samples}
    return result


@pytest.fixture(scope="module")
def folder(deb: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stamps(deb, tmp_path_factory.mktemp("out") / "stamps").prepare()


def test_no_caption_in_any_language_is_in_two_splits(folder: Path) -> None:
    home: dict[tuple[str, str], str] = {}
    groups: dict[str, set[str]] = {}
    for split, samples in read(folder).items():
        groups[split] = {json.loads(members["json"])["group"] for members in samples.values()}
        for members in samples.values():
            for language, caption in json.loads(members["json"])["captions"].items():
                assert home.setdefault((language, caption), split) == split
    assert {split: len(found) for split, found in groups.items()} == {"test": 100, "val": 60, "train": 40}


def test_samples(folder: Path) -> None:
    samples = {key: members for split in read(folder).values() for key, members in split.items()}
    assert len(samples) == COUNT
    cow = samples["things_kind_0_thing-0"]
    assert set(cow) == {"png", "json", "en.ogg", "fr.ogg", "pt_br.wav", "effect.wav"}
    assert (cow["png"], cow["fr.ogg"], cow["effect.wav"]) == (png(0), b"french 0", b"moo")
    about = json.loads(cow["json"])
    assert about["caption"] == "Thing 0!"
    assert about["captions"] == {"en": "Thing 0!", "fr": "Chose 0.", "pt_BR": "Coisa 0."}
    assert (about["group"], about["category"], about["name"]) == ("thing 0", "things/kind.0", "thing-0")
    assert json.loads(samples["things_kind_2_thing-200"]["json"])["group"] == "thing 100"


def test_large_pictures_are_reduced(folder: Path) -> None:
    samples = {key: members for split in read(folder).values() for key, members in split.items()}
    large = samples["things_kind_1_thing-1"]
    assert json.loads(large["json"])["size"] == [100, 1000]
    with Image.open(io.BytesIO(large["png"])) as image:
        assert (image.size, image.mode) == ((51, 512), "RGBA")
        np.testing.assert_array_equal(
            np.unique(np.asarray(image).reshape(-1, 4), axis=0), [[231, 3, 77, 128]]
        )


def test_what_the_folder_says_of_itself(folder: Path) -> None:
    note = json.loads((folder / "dataset.json").read_text())
    assert (note["source"], note["version"]) == ("stamps", "2022.06.04-1")
    assert {name: split["captions"] for name, split in note["splits"].items()} == {
        "train": 40, "val": 60, "test": 100,
    }  # fmt: skip
    assert sum(split["samples"] for split in note["splits"].values()) == COUNT
    assert sum(split["spoken"]["fr"] for split in note["splits"].values()) == COUNT
    assert note["left_out"] == {"mirror images": 1, "drawn as SVG": 1, "symbols (letters, coins, ...)": 1}
    assert (folder / "copyright").read_bytes() == b"GPL-2"
    assert (folder / "CHANGES.txt").read_bytes() == b"cow by Ann"
    assert "CHANGES.txt" in (folder / "ATTRIBUTION.md").read_text()


def test_the_cache_is_kept_apart_by_settings(
    deb: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMLAB_CACHE", str(tmp_path))
    first = stamps(deb, None).prepare()
    written = (first / "dataset.json").stat().st_mtime_ns
    assert stamps(deb, None).prepare() == first
    assert (first / "dataset.json").stat().st_mtime_ns == written
    other = stamps(deb, None, effects=False, seed=3).prepare()
    assert other != first
    assert not any("effect.wav" in members for split in read(other).values() for members in split.values())
    assert read(other)["test"].keys() != read(first)["test"].keys()

    def no_network(*arguments: object, **settings: object) -> None:
        raise AssertionError("asked for the package")

    monkeypatch.setattr(stamps_module, "resolve_deb", no_network)
    assert Stamps(languages=["fr", "pt_BR"], spoken=["en", "fr", "pt_BR"]).prepare() == first


def test_another_release_is_not_the_same(deb: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMLAB_CACHE", str(tmp_path / "cache"))
    newer = tmp_path / "newer.deb"
    newer.write_bytes(make_deb(package(), control=CONTROL.replace(b"2022.06.04-1", b"1:2030~rc1")))
    assert stamps(deb, None).prepare() != stamps(newer, None).prepare()


def test_out_that_holds_something_else(deb: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="is not empty and holds no stamps of these settings"):
        stamps(deb, tmp_path).prepare()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_another_package(tmp_path: Path) -> None:
    path = tmp_path / "vim.deb"
    path.write_bytes(make_deb({}, control=b"Package: vim\nVersion: 9\n"))
    with pytest.raises(ValueError, match="is the package vim, not tuxpaint-stamps-default"):
        stamps(path, tmp_path / "out").prepare()
    with pytest.raises(ValueError, match="there is no file"):
        stamps(tmp_path / "nothing.deb", tmp_path / "out").prepare()


def test_broken_package_leaves_nothing(deb: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.deb"
    path.write_bytes(deb.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"cut\.deb is cut short or broken"):
        stamps(path, tmp_path / "data" / "out").prepare()
    assert [entry.name for entry in (tmp_path / "data").iterdir()] == [".stamps.lock"]


@pytest.mark.parametrize("setting", [{"languages": ["xx"]}, {"spoken": ["fr", "xx"]}])
def test_unknown_language(deb: Path, tmp_path: Path, setting: dict[str, list[str]]) -> None:
    with pytest.raises(ValueError, match=re.compile(r"no stamp has a .*caption in xx; there are .*fr")):
        stamps(deb, tmp_path / "out", **setting).prepare()


def test_captions() -> None:
    text = " A cow. \n\nfr.utf8=Une vache = un animal.\nsr@latin.utf8=Krava.\nde.utf8=\nnonsense\n"
    assert read_captions(text.encode()) == {
        "en": "A cow.", "fr": "Une vache = un animal.", "sr@latin": "Krava.",
    }  # fmt: skip
    assert read_captions(b"") == read_captions(b"\nfr.utf8=") == {}


@pytest.mark.slow
def test_the_released_package() -> None:
    """Numbers counted in the package itself."""
    folder = fetched(Stamps().prepare)
    note = json.loads((folder / "dataset.json").read_text())
    if note["version"] != "2022.06.04-1":
        pytest.skip(f"another release: {note['version']}")
    splits = note["splits"].values()
    assert sum(split["samples"] for split in splits) == 538
    assert [note["splits"][name]["captions"] for name in ("train", "val", "test")] == [338, 60, 100]
    assert {lang: sum(s["spoken"].get(lang, 0) for s in splits) for lang in ("en", "fr", "da")} == {
        "en": 65, "fr": 520, "da": 290,
    }  # fmt: skip
