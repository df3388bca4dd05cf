"""Norms of gradients by part: as by hand, of whole unscaled gradients, before clipping, at logged steps."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.precision import MixedPrecision
from small_runs import fit, make_task

from mmlab.callbacks.gradient_norms import GradientNorms

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*in eval mode"),
    pytest.mark.filterwarnings("ignore:Attribute .* is an instance of"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]


class Kept(Callback):
    """Gradients of each part by hand, and what was logged, by step."""

    def __init__(self, *, scaled: bool = False) -> None:
        self.scaled = scaled
        self.wanted: list[dict[str, float]] = []
        self.found: list[dict[str, float]] = []

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any
    ) -> None:
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        scale = scaler.get_scale() if self.scaled and scaler is not None else 1.0
        norms = {}
        for part in ("text", "signal"):
            gradients = [p.grad for n, p in pl_module.named_parameters() if n.startswith(f"model.{part}.")]
            squares = [float(g.double().square().sum()) for g in gradients if g is not None]
            norms[f"train/grad_norm/{part}"] = sum(squares) ** 0.5 / scale
        self.wanted.append(norms)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.found.append({name: value for name, value in logged.items() if "grad_norm" in name})


def run(root: Path, *, scaled: bool = False, fused: bool = False, **settings: Any) -> Kept:
    kept = Kept(scaled=scaled)
    optimizer = partial(torch.optim.AdamW, lr=1e-3, fused=fused)
    fit(make_task("full", optimizer=optimizer), root, GradientNorms(), kept, **settings)
    return kept


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_they_are_as_by_hand_and_before_clipping(tmp_path: Path, precision: Any) -> None:
    kept = run(tmp_path, steps=3, log_every_n_steps=1, gradient_clip_val=1e-3, precision=precision)
    for wanted, found in zip(kept.wanted, kept.found, strict=True):
        assert found == pytest.approx(wanted, rel=1e-5)
        assert min(wanted.values()) > 1e-3


@pytest.mark.parametrize("fused", [False, True])
def test_they_are_of_gradients_that_no_scale_of_float16_multiplies(tmp_path: Path, fused: bool) -> None:
    plain = run(tmp_path, steps=2, log_every_n_steps=1)
    # Lightning has no `precision` for float16 on a processor; torch has.
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    plugins = [MixedPrecision("16-mixed", "cpu", scaler)]
    kept = run(tmp_path, steps=2, log_every_n_steps=1, plugins=plugins, fused=fused, scaled=fused)
    for number in range(2):
        assert kept.found[number] == pytest.approx(kept.wanted[number], rel=1e-5)
    assert kept.found[0] == pytest.approx(plain.found[0], rel=0.02)


def test_they_are_of_all_that_is_accumulated(tmp_path: Path) -> None:
    kept = run(tmp_path, steps=2, log_every_n_steps=1, accumulate_grad_batches=2, per_epoch=4)
    assert len(kept.wanted) == 2
    assert kept.found[0] == {}
    assert kept.found[1] == pytest.approx(kept.wanted[0], rel=1e-5)
    assert kept.found[3] == pytest.approx(kept.wanted[1], rel=1e-5)


def test_steps_that_are_not_logged_cost_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = torch.nn.utils.get_total_norm

    def counted(*arguments: Any, **named: Any) -> torch.Tensor:
        calls.append(1)
        return original(*arguments, **named)

    monkeypatch.setattr("mmlab.callbacks.gradient_norms.get_total_norm", counted)
    kept = run(tmp_path, steps=6, log_every_n_steps=3)
    assert len(calls) == 2 * 2  # of two parts, at two steps
    assert kept.found[2] == pytest.approx(kept.wanted[2], rel=1e-5)
    assert kept.found[5] == pytest.approx(kept.wanted[5], rel=1e-5)
