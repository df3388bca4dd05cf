"""What the model says of fixed samples, as a Weights & Biases table."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import soundfile
import wandb
from PIL import Image

from mmlab.callbacks.answers import AnswerPage
from mmlab.callbacks.run_logger import RunLogger
from mmlab.data.exhibit import Exhibit, Sound
from mmlab.metrics.text import Answered


def encoded_picture() -> bytes:
    with io.BytesIO() as file:
        Image.new("RGB", (8, 8), (200, 0, 0)).save(file, "PNG")
        return file.getvalue()


def encoded_sound() -> bytes:
    with io.BytesIO() as file:
        soundfile.write(file, np.linspace(-0.1, 0.1, 800, dtype=np.float32), 16_000, format="OGG")
        return file.getvalue()


def test_the_table_has_pictures_and_sounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path))
    wandb.finish()  # what another test may have left open
    sound = encoded_sound()
    shown = {
        0: Exhibit("seen", (encoded_picture(),), ("What?",), ()),
        1: Exhibit("heard", (), ("What?",), (Sound("fr.ogg", sound),)),
    }
    answered = [Answered(place, f"said {place}", ("this", "that"), "g") for place in shown]
    logger = RunLogger(str(tmp_path), name="table")
    trainer = L.Trainer(logger=logger, default_root_dir=tmp_path, accelerator="cpu", devices=1)
    trainer.datamodule = SimpleNamespace(exhibit=lambda split, place: shown[place])  # type: ignore[attr-defined]
    task = L.LightningModule()
    task.metrics = SimpleNamespace(answered=lambda: answered)  # type: ignore[assignment]
    AnswerPage(2).on_test_end(trainer, task)
    logger.experiment.finish()

    kept = [path.read_bytes() for path in (tmp_path / "artifacts").rglob("*") if path.is_file()]
    table = next(json.loads(one) for one in kept if b'"columns"' in one)
    assert table["columns"] == ["key", "image", "sound", "question", "answer", "references"]
    (seen, heard) = table["data"]
    assert (seen[0], seen[2:]) == ("seen", [None, "What?", "said 0", "this; that"])
    assert seen[1]["_type"] == "image-file"
    assert (heard[1], heard[2]["_type"]) == (None, "audio-file")
    assert heard[2]["path"].endswith(".ogg")
    assert sound in kept
