"""A folder of weights is there whole, or as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmlab.runs.new_folder import WEIGHTS_FILE, new_folder


def fill(folder: Path, text: str) -> None:
    (folder / WEIGHTS_FILE).write_text(text)


def test_it_takes_its_name_when_it_is_complete(tmp_path: Path) -> None:
    with new_folder(tmp_path / "a" / "out", force=False) as folder:
        fill(folder, "new")
        assert not (tmp_path / "a" / "out").exists()
    assert (tmp_path / "a" / "out" / WEIGHTS_FILE).read_text() == "new"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["out"]


def test_what_fails_leaves_everything_as_it_was(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out", force=False) as folder:
        fill(folder, "old")
    with pytest.raises(FileNotFoundError), new_folder(tmp_path / "out", force=True) as folder:
        fill(folder / "missing", "new")
    assert (tmp_path / "out" / WEIGHTS_FILE).read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_there_is_replaced_only_on_demand_and_only_weights(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    with pytest.raises(ValueError, match="--force replaces it"), new_folder(tmp_path / "home", force=False):
        pass
    with pytest.raises(ValueError, match="it is not replaced"), new_folder(tmp_path / "home", force=True):
        pass
    fill(tmp_path / "home", "old")
    with new_folder(tmp_path / "home", force=True) as folder:
        fill(folder, "new")
    assert (tmp_path / "home" / WEIGHTS_FILE).read_text() == "new"
