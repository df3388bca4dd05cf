"""Which checkpoint a run means, and weights that are written alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mmlab.runs.checkpoint import Weights, find_checkpoint, read_weights, write_weights


def save(path: Path, best: str = "", **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    callbacks = {"ModelCheckpoint{'monitor': 'val/x'}": {"best_model_path": best}}
    torch.save({"state_dict": {"w": torch.ones(2)}, "callbacks": callbacks, **more}, path)
    return path


def test_a_file_is_itself(tmp_path: Path) -> None:
    path = save(tmp_path / "any.ckpt")
    assert find_checkpoint(path) == path


def test_a_run_means_its_best_even_when_it_was_moved(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    best = save(folder / "epoch1.ckpt")
    save(folder / "epoch2.ckpt")
    save(folder / "last.ckpt", best="/elsewhere/run/checkpoints/epoch1.ckpt")
    assert find_checkpoint(tmp_path / "run") == best


@pytest.mark.parametrize("best", ["", "/gone/epoch7.ckpt"])
def test_without_a_best_one_it_means_the_last(tmp_path: Path, best: str) -> None:
    save(tmp_path / "checkpoints" / "epoch1.ckpt")
    last = save(tmp_path / "checkpoints" / "last.ckpt", best=best)
    assert find_checkpoint(tmp_path) == last


def test_a_single_one_is_the_one(tmp_path: Path) -> None:
    path = save(tmp_path / "checkpoints" / "epoch1.ckpt")
    assert find_checkpoint(tmp_path) == path


def test_what_is_not_clear_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither a run directory"):
        find_checkpoint(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match="no checkpoint was saved"):
        find_checkpoint(tmp_path)
    save(tmp_path / "checkpoints" / "a.ckpt")
    save(tmp_path / "checkpoints" / "b.ckpt")
    with pytest.raises(ValueError, match=r"2 checkpoints \(a.ckpt, ...\).*name one"):
        find_checkpoint(tmp_path)


def test_weights_alone_are_read_as_they_were_written(tmp_path: Path) -> None:
    shared = torch.randn(3, 4)
    state = {"a": shared, "b": shared[:2], "c": torch.tensor(3), "d": shared.T.bfloat16()}
    written = Weights(state, {"text.encoder": "abc"}, 2)
    write_weights(tmp_path / "w.safetensors", written)
    found = read_weights(tmp_path / "w.safetensors")
    assert found.bases == written.bases
    assert found.stage == 2
    assert found.state.keys() == state.keys()
    assert all(torch.equal(found.state[name], value) for name, value in state.items())
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_a_checkpoint_gives_its_weights_and_bases(tmp_path: Path) -> None:
    path = save(tmp_path / "x.ckpt", adaptation={"bases": {"image.encoder": "1"}, "stage": 1})
    found = read_weights(path)
    assert found.bases == {"image.encoder": "1"}
    assert found.stage == 1
    assert torch.equal(found.state["w"], torch.ones(2))
