"""How long does a run take from SIGTERM to a complete checkpoint? Slurm's KillWait is 30 seconds, here 5.

    python benchmarks/preemption.py            five runs, told to stop at steps of their own
    python benchmarks/preemption.py --quick    one
    python benchmarks/preemption.py --config FILE ...    another experiment; other words go to `mmlab fit`

Each run is told to stop at some step of its training, and is asked for the time until its checkpoint was
complete with its digest, and until the process had ended. Prints a Markdown table. The ratio is that of the
longest time to a complete checkpoint to a KillWait of 5 seconds.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from mmlab.runs.status import read_status

STAMPS = Path(__file__).parents[1] / "experiments" / "retrieval" / "stamps.yaml"
KILL_WAIT = 5.0
PATIENCE = 600.0


class Stop(NamedTuple):
    """A run that was told to stop."""

    step: int
    saved: float
    """Seconds to a complete checkpoint."""
    ended: float
    """Seconds to the end of the process."""
    megabytes: float


def stop(config: Path, words: list[str], folder: Path, *, steps: int) -> Stop:
    """Train so many steps, and tell the run to stop."""
    command = [sys.executable, "-m", "mmlab", "fit", "--config", str(config), "--runs", str(folder), *words]
    command += ["--test_untrained", "false", "--name", "stopped"]
    with (folder / "log").open("w") as log:
        run = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"WANDB_MODE": "offline"})
        try:
            directory = wait_for_steps(folder / "stopped", steps, run)
            start = time.time()
            run.send_signal(signal.SIGTERM)
            status = run.wait(PATIENCE)
            ended = time.time() - start
        finally:
            run.kill()
            run.wait()
    said = read_status(directory)
    if status != 143 or said.state != "preempted":
        sys.exit(f"the run ended with status {status}:\n{(folder / 'log').read_text()[-2000:]}")
    checkpoint = directory / "checkpoints" / "last.ckpt"
    proven = checkpoint.with_name("last.ckpt.sha256").stat().st_mtime
    return Stop(said.step or 0, proven - start, ended, checkpoint.stat().st_size / 1e6)


def wait_for_steps(runs: Path, steps: int, run: subprocess.Popen[bytes]) -> Path:
    end = time.monotonic() + PATIENCE
    while run.poll() is None and time.monotonic() < end:
        for directory in runs.glob("*"):
            if (read_status(directory).step or 0) >= steps:
                return directory
        time.sleep(0.05)
    sys.exit(f"the run did not come to step {steps}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one run")
    parser.add_argument("--config", type=Path, default=STAMPS)
    arguments, words = parser.parse_known_args()
    found = []
    for number in range(1 if arguments.quick else 5):
        with tempfile.TemporaryDirectory() as folder:
            found.append(stop(arguments.config, words, Path(folder), steps=3 + 4 * number))
    print("| stopped at step | complete checkpoint after (s) | process ended after (s) | MB |")
    print("|---:|---:|---:|---:|")
    for one in found:
        print(f"| {one.step} | {one.saved:.2f} | {one.ended:.2f} | {one.megabytes:.1f} |")
    ratio = max(one.saved for one in found) / KILL_WAIT
    print(f"preemption ratio={ratio:.2f} bar=1.0 {'ok' if ratio <= 1 else 'short'}")


if __name__ == "__main__":
    main()
