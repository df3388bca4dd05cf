"""One safetensors file from checkpoints of any form, the best one of a run, and hostile checkpoints."""

from __future__ import annotations

import json
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmlab.cli import main
from mmlab.parallel import folder
from mmlab.parallel.consolidate import consolidate, find_checkpoint
from mmlab.parallel.folder import write_folder
from mmlab.parallel.stored import joined, open_checkpoint, parted

pytestmark = pytest.mark.filterwarnings("ignore:.*assuming the intent is to save in a single process")


def make_weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "model.wide": torch.randn(3, 5, generator=generator),
        "model.half": torch.randn(4, 3, generator=generator).bfloat16(),
        "model.double": torch.randn(2, dtype=torch.float64, generator=generator),
        "model.count": torch.tensor(7),
        "model.flags": torch.tensor([True, False, True]),
        "model.none": torch.empty(0, 4),
    }


def make_checkpoint(step: int = 3) -> dict[str, Any]:
    weights = make_weights()
    state = {0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(3, 5)}, 1: {"kept": 2.5}}
    return {
        "epoch": 1,
        "global_step": step,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": weights,
        "adaptation": {"bases": {"image.encoder": "abc"}, "stage": 2},
        "hyper_parameters": {"_class_path": "mmlab.tasks.retrieval.RetrievalTask"},
        "optimizer_states": [{"state": state, "param_groups": [{"lr": 0.1, "params": [0, 1]}]}],
    }


def write(path: Path, form: str, step: int = 3) -> Path:
    checkpoint = make_checkpoint(step)
    if form == "file":
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(checkpoint, path)
    else:
        write_folder(path, checkpoint)
    return path


@pytest.mark.parametrize("form", ["file", "folder"])
def test_every_tensor_comes_back_exactly(tmp_path: Path, form: str) -> None:
    out = tmp_path / "new" / "weights.safetensors"
    done = consolidate(write(tmp_path / "a.ckpt", form), out)
    wanted, got = make_weights(), load_file(out)
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        assert got[name].dtype == value.dtype
        assert torch.equal(got[name], value), name
    assert (done.tensors, done.step, done.size) == (len(wanted), 3, out.stat().st_size)
    assert [file.name for file in out.parent.iterdir()] == [out.name]


def test_the_header_says_what_it_is(tmp_path: Path) -> None:
    consolidate(write(tmp_path / "a.ckpt", "folder"), tmp_path / "b.safetensors")
    with safe_open(tmp_path / "b.safetensors", framework="pt") as file:
        about = json.loads(file.metadata()["mmlab"])
    assert about["adaptation"] == {"bases": {"image.encoder": "abc"}, "stage": 2}
    assert about["task"] == "mmlab.tasks.retrieval.RetrievalTask"
    assert about["global_step"] == 3
    assert about["mmlab"]


def test_its_bytes_are_laid_out_as_safetensors_lays_them(tmp_path: Path) -> None:
    consolidate(write(tmp_path / "a.ckpt", "file"), tmp_path / "ours.safetensors")
    save_file(make_weights(), tmp_path / "theirs.safetensors")
    data = [
        (raw := (tmp_path / name).read_bytes())[8 + struct.unpack("<Q", raw[:8])[0] :]
        for name in ("ours.safetensors", "theirs.safetensors")
    ]
    assert data[0] == data[1]


@pytest.mark.parametrize("form", ["file", "folder"])
def test_all_of_a_checkpoint_comes_back(tmp_path: Path, form: str) -> None:
    wanted, got = make_checkpoint(), open_checkpoint(write(tmp_path / "a.ckpt", form)).whole()
    assert got.keys() == wanted.keys()
    assert got["adaptation"] == wanted["adaptation"]
    (settings,) = got["optimizer_states"]
    assert settings["param_groups"] == [{"lr": 0.1, "params": [0, 1]}]
    assert float(settings["state"][0]["step"]) == 3
    assert settings["state"][1] == {"kept": 2.5}


def test_parting_can_be_undone() -> None:
    checkpoint = make_checkpoint()
    tensors, rest = parted(checkpoint)
    assert "optimizer_0.state.0.exp_avg" in tensors
    assert not any(isinstance(value, Tensor) for value in rest.values())
    assert joined(tensors, rest).keys() == checkpoint.keys()
    assert joined(tensors, rest)["optimizer_states"] == checkpoint["optimizer_states"]


def test_a_checkpoint_replaces_another_only_when_it_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "last.ckpt", "folder", step=1)

    def full_disk(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(folder, "save", full_disk)
        with pytest.raises(OSError, match="no space left"):
            write(path, "folder", step=2)
    assert open_checkpoint(path).rest["global_step"] == 1
    write(path, "folder", step=2)
    assert open_checkpoint(path).rest["global_step"] == 2
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def make_run(folder: Path, monitor: str | None) -> Path:
    for step in (1, 2, 3):
        checkpoint = make_checkpoint(step)
        best = f"/elsewhere/{folder.name}/checkpoints/step2.ckpt" if monitor else f"{folder}/step1.ckpt"
        checkpoint["callbacks"] = {"ModelCheckpoint{}": {"monitor": monitor, "best_model_path": best}}
        path = folder / "checkpoints" / f"step{step}.ckpt"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(checkpoint, path)
        os.utime(path, (step, step))
    return folder


def test_of_a_run_the_best_is_taken_and_else_the_newest(tmp_path: Path) -> None:
    assert find_checkpoint(make_run(tmp_path / "a", "val/r1")).name == "step2.ckpt"
    assert find_checkpoint(make_run(tmp_path / "b", None)).name == "step3.ckpt"
    path = write(tmp_path / "folder.ckpt", "folder")
    assert find_checkpoint(path) == path


def test_the_command_says_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = make_run(tmp_path / "a", "val/r1"), tmp_path / "w.safetensors"
    assert main(["runs", "consolidate", str(run), "--out", str(out)]) == 0
    assert capsys.readouterr().out == (
        f"{out}: 6 tensors, 0.0 MB, from {run / 'checkpoints' / 'step2.ckpt'} (step 2)\n"
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path, r"neither a checkpoint nor a run directory"),
        (lambda path: path.write_bytes(b"cut off") and path, r"this is no checkpoint, or is cut off"),
        (lambda path: torch.save({"a": 1}, path) or path, r"this file holds no state_dict"),
    ],
    ids=["nothing", "cut off", "something else"],
)
def test_what_is_no_checkpoint_is_said(tmp_path: Path, make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        consolidate(make(tmp_path / "x.ckpt"), tmp_path / "b.safetensors")


def test_other_endings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"b\.pt: give the file a name that ends in \.safetensors"):
        consolidate(write(tmp_path / "a.ckpt", "file"), tmp_path / "b.pt")


class Harm:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("exit 3",)


@pytest.mark.parametrize("value", [Harm(), os.system, eval], ids=["call", "function", "builtin"])
def test_a_table_that_would_run_code_is_refused(tmp_path: Path, value: Any) -> None:
    path = write(tmp_path / "a.ckpt", "folder")
    (path / ".metadata").write_bytes(pickle.dumps(value))
    with pytest.raises(ValueError, match=r"names (posix|builtins)\.\w+, which no checkpoint needs"):
        consolidate(path, tmp_path / "b.safetensors")


def test_a_pickled_rest_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ckpt", "folder")
    torch.save({"global_step": Harm()}, path / "meta.pt")
    with pytest.raises(pickle.UnpicklingError):
        open_checkpoint(path)
