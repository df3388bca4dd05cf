"""Checkpoints hold what is trained, go on exactly, and refuse another base or another adaptation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from test_retrieval_task import make_loader, make_task, make_trainer

from mmlab.tasks.retrieval import RetrievalTask

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*in eval mode"),
    pytest.mark.filterwarnings("ignore:.*is already saved during checkpointing"),
    pytest.mark.filterwarnings("ignore:.*infer the batch indices"),
    pytest.mark.filterwarnings("ignore:.*logging interval"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint"),
    pytest.mark.filterwarnings("ignore:.*dirpath has changed"),
    pytest.mark.filterwarnings("ignore:.*is not resumable"),
]


def fit(root: Path, task: RetrievalTask, *, resume: Path | None = None) -> Path:
    """Four steps; returns the checkpoint that was saved after two."""
    keeper = ModelCheckpoint(root, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    trainer = make_trainer(root, max_steps=4, enable_checkpointing=True, callbacks=[keeper])
    trainer.fit(task, make_loader(6), make_loader(1), ckpt_path=resume, weights_only=True)
    return root / "step=2.ckpt"


def test_only_what_is_trained_is_saved(tmp_path: Path) -> None:
    task = make_task({"image": "frozen", "text": "full"})
    saved = torch.load(fit(tmp_path, task), weights_only=True)
    names = set(saved["state_dict"])
    assert not any(name.startswith("model.image.encoder.") for name in names)
    assert any(name.startswith("model.text.encoder.") for name in names)
    assert any(name.startswith("model.image.projection.") for name in names)
    assert "objective.log_scale" in names
    assert set(saved["adaptation"]["bases"]) == {"image.encoder"}


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = make_task("frozen")
    half = fit(tmp_path / "whole", whole)
    # The same pretrained weights, another start for the rest: all of that comes out of the checkpoint.
    again = make_task("frozen")
    with torch.no_grad():
        again.model.get_submodule("image.projection").apply(
            lambda module: [parameter.zero_() for parameter in module.parameters(recurse=False)]
        )
    fit(tmp_path, again, resume=half)
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_another_base_is_refused(tmp_path: Path) -> None:
    path = fit(tmp_path, make_task("frozen"))
    with pytest.raises(ValueError, match=r"trained beside other weights of image.encoder .*same pretrained"):
        fit(tmp_path, make_task("frozen", seed=1), resume=path)


def test_another_adaptation_is_refused(tmp_path: Path) -> None:
    path = fit(tmp_path, make_task("frozen"))
    with pytest.raises(ValueError, match=r"another model or adaptation .* lacks \d+ tensors \(model"):
        fit(tmp_path, make_task("full"), resume=path)


def test_full_weights_need_no_base(tmp_path: Path) -> None:
    """A run that trained everything may be continued with parts frozen: all weights are in its checkpoint."""
    path = fit(tmp_path, make_task("full"))
    second = make_task("frozen", seed=1)
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.validate(second, make_loader(1), ckpt_path=path, weights_only=True, verbose=False)
    for name, value in torch.load(path, weights_only=True)["state_dict"].items():
        assert torch.equal(second.state_dict()[name], value), name
