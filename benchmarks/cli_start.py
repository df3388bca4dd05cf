"""How long the light commands take to start, and whether they import torch."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from statistics import median
from typing import NamedTuple

BAR = 1.0
SUBMIT = "submit --config experiments/retrieval/smoke.yaml --gpus-per-node 0 --time 10 --dry-run"
COMMANDS = ("--help", "shards --help", "assets list", "data list", SUBMIT)
CLUSTER = ("jobs",)
"""They ask Slurm: measured where a cluster answers (slurm/local_cluster.sh brings one up)."""


class Seconds(NamedTuple):
    """What one start took."""

    wall: float
    cpu: float


def start(words: list[str]) -> Seconds:
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "mmlab", *words], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"mmlab {' '.join(words)} ended with {process.returncode}")
    return Seconds(time.perf_counter() - began, used.ru_utime + used.ru_stime)


def imports_torch(words: list[str]) -> bool:
    command = [sys.executable, "-X", "importtime", "-m", "mmlab", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return any(line.rpartition("|")[2].strip() == "torch" for line in done.stderr.splitlines())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two starts of each instead of five")
    repetitions = 2 if parser.parse_args().quick else 5
    print(f"{'seconds':24}{'CPU best':>10}{'median':>10}{'wall best':>12}{'median':>10}{'torch':>8}")
    worst, torch_free = 0.0, True
    answers = subprocess.run(["bash", "-c", "sinfo"], capture_output=True, check=False).returncode == 0
    for command in (*COMMANDS, *(CLUSTER if answers else ())):
        words = command.split()
        start(words)  # compiles what is not compiled yet
        runs = [start(words) for _ in range(repetitions)]
        wall, cpu = [run.wall for run in runs], [run.cpu for run in runs]
        heavy = imports_torch(words)
        numbers = f"{min(cpu):10.2f}{median(cpu):10.2f}{min(wall):12.2f}{median(wall):10.2f}"
        print(f"{f'mmlab {command}':24.24}{numbers}{'yes' if heavy else 'no':>8}", flush=True)
        worst, torch_free = max(worst, median(wall)), torch_free and not heavy
    if not answers:
        print(f"not measured, for no cluster answers: {', '.join(CLUSTER)}")
    fine = worst <= BAR and torch_free
    print(f"cli_start ratio={worst:.2f} bar={BAR} {'ok' if fine else 'short'} (seconds, and no torch)")


if __name__ == "__main__":
    main()
