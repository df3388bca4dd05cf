"""SIGTERM to `mmlab fit`, as a cluster sends it before it takes a job away: saved, said, and status 143."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

SMOKE = Path(__file__).parents[2] / "experiments" / "retrieval" / "smoke.yaml"


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_a_run_that_is_terminated_saves_and_says_how_to_go_on(tmp_path: Path, devices: int) -> None:
    words = [
        sys.executable, "-m", "mmlab", "fit", "--config", str(SMOKE), "--data.source.init_args.train", "128",
        "--data.batch_size", "32", "--trainer.max_epochs", "500", "--trainer.check_val_every_n_epoch", "500",
        "--trainer.accelerator", "cpu", "--trainer.devices", str(devices), "--trainer.strategy",
        "auto" if devices == 1 else "ddp", "--trainer.logger", "false", "--test_untrained", "false",
    ]  # fmt: skip
    dropped = ("MMLAB_RUN_ID", "SLURM_JOB_ID", "TORCHELASTIC_RUN_ID")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    environment |= {"MMLAB_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
    with (tmp_path / "log").open("w") as log:
        run = subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_for("epoch 2", tmp_path / "log", run)
            run.send_signal(signal.SIGTERM)
            assert run.wait(60) == 143
        finally:
            run.kill()
            run.wait()
    said = (tmp_path / "log").read_text()
    assert "Traceback" not in said
    assert said.count("stopped by SIGTERM: go on with --ckpt_path ") == 1
    last = said.rpartition("--ckpt_path ")[2].split()[0]
    assert torch.load(tmp_path / last, weights_only=True)["global_step"] >= 4


def wait_for(word: str, log: Path, run: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 120
    while word not in log.read_text():
        assert run.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.2)
