"""A run whose directory lies on a disk that becomes full."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmlab.parallel.stored import damage, open_checkpoint

pytestmark = pytest.mark.slow
SMOKE = Path(__file__).parents[2] / "experiments" / "retrieval" / "smoke.yaml"
SMALL = (
    "--config", str(SMOKE), "--data.source.init_args.train", "64", "--data.source.init_args.val", "40",
    "--data.source.init_args.test", "40", "--data.batch_size", "16", "--trainer.accelerator", "cpu",
    "--trainer.max_epochs", "3", "--trainer.enable_progress_bar", "false", "--trainer.log_every_n_steps", "1",
    "--checkpoint.every_n_train_steps", "2", "--test_untrained", "false",
)  # fmt: skip


def fit(disk: Path, **filler: int) -> subprocess.CompletedProcess[str]:
    """Train on the disk, with a `DiskFiller`."""
    settings = {"class_path": "disk_filler.DiskFiller", "init_args": {"file": "filler", **filler}}
    return subprocess.run(
        [sys.executable, "-m", "mmlab", "fit", *SMALL, "--trainer.callbacks", json.dumps([settings])],
        cwd=disk, capture_output=True, text=True, check=False, timeout=500,
        env=os.environ | {
            "PYTHONPATH": str(Path(__file__).parent), "MMLAB_CACHE": str(disk.parent / "cache"),
            "WANDB_MODE": "offline",
        },
    )  # fmt: skip


def test_room_that_comes_back_takes_all_that_had_to_wait(disk: Path) -> None:
    done = fit(disk, start=3, stop=9)
    assert done.returncode == 0, done.stderr
    (run,) = (disk / "runs").glob("*/*")
    assert "last.ckpt was not saved: No space left on device" in done.stderr
    assert done.stderr.count("metrics.csv was not written: No space left on device; the run goes on") == 1
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
    assert (run / "metrics.json").exists()
    with (run / "logs" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows if row["train/loss"]] == list(range(12)), "no step is missing"
    assert damage(run / "checkpoints" / "last.ckpt") is None
    assert open_checkpoint(run / "checkpoints" / "last.ckpt").rest["global_step"] == 12
    assert not list(run.rglob(".*")), "nothing half written is left"


def test_a_run_whose_last_weights_could_not_be_kept_has_failed(disk: Path) -> None:
    done = fit(disk, start=5)
    assert done.returncode == 1, done.stderr
    (run,) = (disk / "runs").glob("*/*")
    assert "test/mean_recall" in done.stdout, "what was measured is said all the same"
    said = done.stderr.splitlines()[-1]
    assert "last.ckpt was not saved: No space left on device" in said
    assert "metrics.json was not written" in said
    assert "go on with --ckpt_path" in said
    assert open_checkpoint(run / "checkpoints" / "last.ckpt").rest["global_step"] == 4
    assert damage(run / "checkpoints" / "last.ckpt") is None
    assert not list(run.rglob(".*")), "nothing half written is left"
