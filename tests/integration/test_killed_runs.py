"""Runs killed at random moments go on as if nothing had happened, on other ranks and workers too."""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml

KILLS = 20
STEPS = 40
ALIKE = 12
"""So many runs have one rank: up to there every loss is the same to the last bit."""
# Forks a process group for each command from one that has imported all that trains; says who it is, and then
# how it ended.
PROGRAM = """
import json, os, sys
import mmlab.__main__, mmlab.commands.train
from mmlab.cli import main
for line in sys.stdin:
    words, log = json.loads(line)
    child = os.fork()
    if child == 0:
        os.setsid()
        for number in (0, 1, 2):
            os.dup2(os.open(log if number else os.devnull, os.O_RDWR | os.O_CREAT | os.O_APPEND), number)
        sys.argv = [mmlab.__main__.__file__, *words]  # Lightning starts the second rank with these
        sys.exit(main())
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
CONFIG = {
    "name": "killed",
    "model": {
        "class_path": "mmlab.tasks.retrieval.RetrievalTask",
        "init_args": {
            "model": {
                "class_path": "mmlab.models.dual_encoder.DualEncoder",
                "init_args": {
                    "image": {
                        "class_path": "mmlab.models.dual_encoder.Tower",
                        "init_args": {
                            "encoder": {
                                "class_path": "mmlab.models.encoders.image.ImageEncoder",
                                "init_args": {"name": "test_resnet", "pretrained": False},
                            },
                            "dim": 16,
                        },
                    },
                    "signal": {
                        "class_path": "mmlab.models.dual_encoder.Tower",
                        "init_args": {
                            "encoder": {
                                "class_path": "mmlab.models.encoders.signal.SignalEncoder",
                                "init_args": {"channels": 3, "dim": 16, "num_layers": 1},
                            },
                            "dim": 16,
                        },
                    },
                },
            },
            "objective": {"class_path": "mmlab.objectives.contrastive.InfoNCE"},
            "adaptation": {
                "class_path": "mmlab.adaptation.policy.Policy", "init_args": {"towers": "full"},
            },
            "optimization": {
                "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05, "momentum": 0.9}}
            },
        },
    },
    "data": {
        "source": {
            "class_path": "mmlab.sources.generated.Generated",
            "init_args": {"train": 100, "val": 8, "test": 8},
        },
        "batch_size": 8,
        "loading": {"group_by": "json.caption", "lanes": {"ranks": 2, "groups": 2}},
        "image": {
            "class_path": "mmlab.data.image.ImageReader",
            "init_args": {"size": 32, "flip": 0.5, "colour_jitter": 0.3, "crop_scale": [0.3, 1.0]},
        },
        "signal": {"class_path": "mmlab.data.signal.SignalReader", "init_args": {"channels": 3}},
    },
    "trainer": {
        "max_steps": STEPS, "max_epochs": 100, "accelerator": "cpu", "limit_val_batches": 0, "logger": False,
        "enable_progress_bar": False,
    },
    "checkpoint": {"every_n_train_steps": 2, "save_top_k": -1, "save_last": True},
    "test_untrained": False,
    "test_best": False,
}  # fmt: skip


class Step(NamedTuple):
    """What a step saw and gave, over all ranks."""

    keys: list[str]
    pixels: list[int]
    loss: float


class Run:
    """One process group that trains, in a folder of its own."""

    def __init__(self, folder: Path, ranks: int) -> None:
        folder.mkdir()
        self.folder = folder
        self.ranks = ranks

    def steps(self) -> dict[int, Step]:
        """What all ranks have written of each step; a line may be half written."""
        lines: list[dict[int, Step]] = []
        for rank in range(self.ranks):
            path = self.folder / f"rank{rank}.jsonl"
            text = path.read_text() if path.exists() else ""
            values = [json.loads(line) for line in text.split("\n")[:-1]]
            lines.append({v["step"]: Step(v["keys"], v["pixels"], v["loss"]) for v in values})
        return {
            step: Step(
                [key for part in lines for key in part[step].keys],
                [crc for part in lines for crc in part[step].pixels],
                first.loss,
            )
            for step, first in lines[0].items()
            if all(step in part for part in lines)
        }


class Runner:
    """Starts runs, and kills them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "config.yaml"
        self.config.write_text(yaml.safe_dump(CONFIG))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
        environment |= {
            "MMLAB_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
        }  # fmt: skip
        self.program = subprocess.Popen(
            [sys.executable, "-c", PROGRAM], cwd=folder, env=environment, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )  # fmt: skip

    def start(self, name: str, *, ranks: int, workers: int, checkpoint: Path | None) -> tuple[Run, int]:
        run = Run(self.folder / name, ranks)
        words = ["fit", "--config", str(self.config), "--data.loading.num_workers", str(workers)]
        words += ["--checkpoint.dirpath", str(run.folder), "--trainer.callbacks", "step_log.StepLog"]
        words += ["--trainer.log_every_n_steps", "1"]
        words += ["--trainer.callbacks.init_args.folder", str(run.folder)]
        words += ["--trainer.devices", str(ranks)]
        words += ["--trainer.strategy", "ddp"] if ranks > 1 else []
        words += [] if checkpoint is None else ["--ckpt_path", str(checkpoint)]
        assert self.program.stdin is not None
        assert self.program.stdout is not None
        self.program.stdin.write(json.dumps([words, str(run.folder / "log")]) + "\n")
        self.program.stdin.flush()
        return run, int(self.program.stdout.readline())

    def ended(self) -> int:
        assert self.program.stdout is not None
        return int(self.program.stdout.readline())

    def close(self) -> None:
        assert self.program.stdin is not None
        assert self.program.stdout is not None
        self.program.stdin.close()
        self.program.wait(20)
        self.program.stdout.close()


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[Runner]:
    runner = Runner(tmp_path)
    yield runner
    runner.close()


def newest(folder: Path) -> Path | None:
    """The newest checkpoint that is complete."""
    for path in sorted(folder.glob("*/*.ckpt"), key=lambda path: path.stat().st_mtime_ns, reverse=True):
        try:
            torch.load(path, weights_only=True)
        except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile):
            continue
        return path
    return None


def alive(pid: int) -> bool:
    """Whether a process of the group is left that has not ended."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group = path.read_text().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):
            continue
        if int(group) == pid and state != "Z":
            return True
    return False


def kill_at_random(run: Run, pid: int, rng: random.Random) -> None:
    """SIGKILL for all ranks and workers at once: some time after some step, or some time after the start."""
    if rng.random() < 0.2:
        time.sleep(3 * rng.random())
    else:
        wanted, deadline = rng.randint(1, 5), time.monotonic() + 60
        while len(run.steps()) < wanted and alive(pid) and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(0.1 * rng.random())
    with suppress(ProcessLookupError):  # it has ended by itself
        os.killpg(pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(900)  # a machine that others use, too
def test_twenty_kills_change_nothing(runner: Runner, tmp_path: Path) -> None:
    run, _ = runner.start("whole", ranks=1, workers=0, checkpoint=None)
    assert runner.ended() == 0, (run.folder / "log").read_text(errors="replace")
    whole = run.steps()
    assert list(whole) == list(range(STEPS))
    for path in run.folder.glob("*.ckpt"):
        path.unlink()

    rng = random.Random(0)
    killed, seen, kinds = 0, set[int](), set[tuple[int, int]]()
    for number in range(3 * KILLS):
        ranks = 1 if number < ALIKE else rng.choice([1, 2])
        workers = rng.choice([0, 0, 1, 2])  # workers take seconds to start
        run, pid = runner.start(f"{number}", ranks=ranks, workers=workers, checkpoint=newest(tmp_path))
        if killed < KILLS:
            kill_at_random(run, pid, rng)
        status = runner.ended()
        log = (run.folder / "log").read_text(errors="replace") if status > 0 else ""
        assert status in (0, -signal.SIGKILL), log
        killed += status != 0
        kinds |= {(ranks, workers)} if run.steps() else set()
        for step, found in run.steps().items():
            expected = whole[step]
            assert found.keys == expected.keys, (number, step)
            assert found.pixels == expected.pixels, (number, step)
            tolerance = 0.0 if number < ALIKE else 1e-5
            assert abs(found.loss - expected.loss) <= tolerance, (number, step, ranks, workers)
        seen |= run.steps().keys()
        everywhere = {workers for _, workers in kinds} == {0, 1, 2}
        if status == 0 and killed == KILLS and everywhere:
            break
        if status == 0:  # before it was killed often enough, or with workers that came as far as a step
            for path in tmp_path.rglob("*.ckpt"):
                path.unlink()
    assert killed == KILLS
    assert seen == set(range(STEPS))
    assert {ranks for ranks, _ in kinds} == {1, 2}
    assert {workers for _, workers in kinds} == {0, 1, 2}
