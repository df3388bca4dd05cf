from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[..., L.Trainer]:
    """Makes quiet trainers on the CPU, from callbacks and settings."""

    def make(*callbacks: L.Callback, **settings: Any) -> L.Trainer:
        return L.Trainer(
            accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, default_root_dir=tmp_path,
            enable_progress_bar=False, enable_model_summary=False, callbacks=list(callbacks),
            num_sanity_val_steps=0, **settings,
        )  # fmt: skip

    return make
