"""The Debian package of WordNet -> a folder of nouns, or a reason why not."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from debs import make_deb

from mmlab.assets import catalog, convert_wordnet, install
from mmlab.assets.catalog import Entry
from mmlab.assets.fetch import Remote, WrongFileError

FILES = {
    "usr/share/doc/wordnet-base/copyright": b"licence",
    "usr/share/wordnet/data.adj": b"adjectives",
    "usr/share/wordnet/data.noun": b"data",
    "usr/share/wordnet/index.noun": b"index",
    "usr/share/wordnet/noun.exc": b"exceptions",
}


@pytest.fixture
def wordnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Entry:
    """The catalogue's entry, with the checksums of the small files above."""
    monkeypatch.setenv("MMLAB_CACHE", str(tmp_path / "cache"))
    sums = {name: hashlib.sha256(FILES[name]).hexdigest() for name in convert_wordnet._FILES}
    monkeypatch.setattr(convert_wordnet, "_FILES", sums)
    return catalog.entry("wordnet")


def write_deb(folder: Path, files: dict[str, bytes], *, ending: str = ".xz") -> Path:
    path = folder / "wordnet-base_3.0-37_all.deb"
    path.write_bytes(make_deb(files, ending=ending))
    return path


@pytest.mark.parametrize("ending", [".xz", ".gz"])  # packed differently, the same files
def test_a_package_brought_by_hand(wordnet: Entry, tmp_path: Path, ending: str) -> None:
    deb = write_deb(tmp_path, FILES, ending=ending)
    folder = catalog.fetch("wordnet", from_file=deb)
    found = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "asset.json"}
    assert found == {
        "copyright": b"licence", "data.noun": b"data", "index.noun": b"index", "noun.exc": b"exceptions",
    }  # fmt: skip
    assert hashlib.sha256(deb.read_bytes()).hexdigest() in (folder / "asset.json").read_text()
    assert deb.exists()


def test_apt_is_asked_where_it_lies(wordnet: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deb = write_deb(tmp_path, FILES)

    def index(package: str, *, remedy: str) -> Remote:
        assert package == "wordnet-base"
        return Remote(deb.as_uri(), deb.name, hashlib.sha256(deb.read_bytes()).hexdigest(), None, remedy)

    monkeypatch.setattr(install, "resolve_deb", index)
    assert (catalog.fetch("wordnet") / "data.noun").read_bytes() == b"data"
    assert list((tmp_path / "cache" / "downloads").iterdir()) == []


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        (FILES | {"usr/share/wordnet/data.noun": b"other"}, "holds another usr/share/wordnet/data.noun"),
        ({"usr/share/doc/wordnet-base/copyright": b"licence"}, "it has no usr/share/wordnet/data.noun"),
    ],
)
def test_another_package(wordnet: Entry, tmp_path: Path, files: dict[str, bytes], problem: str) -> None:
    with pytest.raises(WrongFileError, match=rf"{problem}.*\n.*--from FILE\.deb") as caught:
        catalog.fetch("wordnet", from_file=write_deb(tmp_path, files))
    assert str(caught.value).count("\n") == 1
    assert not catalog.installed("wordnet")


def test_the_remedy_names_the_package(wordnet: Entry) -> None:
    assert "apt-get download wordnet-base" in wordnet.remedy
    assert "pip download --no-deps p==3.0" in replace(wordnet, package="p", debian=False).remedy
