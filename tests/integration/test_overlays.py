"""Every overlay of experiments/_base for any task trains, on the real command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_processes import Shell

ROOT = Path(__file__).parents[2] / "experiments"
OF_FUSION = {"ogm_ge", "gradient_blend"}
"""Need a task that fuses modalities: tests/integration/test_fusion_experiments.py runs them on one."""
OVERLAYS = sorted(path for path in (ROOT / "_base").glob("*.yaml") if path.stem not in OF_FUSION)
SHORT = (
    "--config", str(ROOT / "retrieval" / "smoke.yaml"), "--data.source.init_args.train", "64",
    "--data.source.init_args.val", "60", "--data.source.init_args.test", "60", "--data.batch_size", "16",
    "--trainer.max_epochs", "2", "--trainer.accelerator", "cpu", "--trainer.logger", "false",
    "--test_untrained", "false",
)  # fmt: skip
MORE = {"ddp": "2", "fsdp2": "2", "hsdp": "2"}
"""Devices."""


@pytest.mark.slow
@pytest.mark.parametrize("path", OVERLAYS, ids=lambda path: path.stem)
def test_an_overlay_trains_and_is_tested(shell: Shell, path: Path) -> None:
    before = shell.runs()
    words = (*SHORT, "--config", str(path), "--trainer.devices", MORE.get(path.stem, "1"))
    # A process of its own where Lightning starts others with its words.
    answer = shell.python("-m", "mmlab", "fit", *words) if path.stem in MORE else shell("fit", *words)
    assert answer.status == 0, answer.err
    assert "Traceback" not in answer.err
    assert "Warning" not in answer.err
    (run,) = shell.runs() - before
    assert (run / "metrics.json").is_file()
    assert (run / "checkpoints" / "last.ckpt").exists()
