"""Running commands in tests: a shell, a program that forks, one that imports only what is light."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

# Forks a process for each command from one that has imported all that trains: importing takes seconds.
PRELOADED = """
import json, os, sys
import mmlab.commands.train, mmlab.models.encoders.image, mmlab.models.encoders.text, mmlab.tasks.retrieval
from mmlab.cli import main
for line in sys.stdin:
    words, out, err = json.loads(line)
    child = os.fork()
    if child == 0:
        for number, (path, flags) in enumerate(
            [(os.devnull, os.O_RDONLY), (out, os.O_WRONLY | os.O_CREAT), (err, os.O_WRONLY | os.O_CREAT)]
        ):
            os.dup2(os.open(path, flags), number)
        sys.argv = ["mmlab", *words]
        sys.exit(main())
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
LIGHT = """
import contextlib, io, json, sys
from mmlab.cli import main
answers = []
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            status = main(words)
        except SystemExit as leave:
            status = leave.code
    answers.append([status or 0, out.getvalue()])
heavy = sorted({"torch", "lightning", "transformers", "timm", "wandb", "torchvision"} & set(sys.modules))
print(json.dumps([answers, heavy]))
"""


class Answer(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def complaint(self) -> list[str]:
        """What is said of an error: the lines from `mmlab:` on."""
        return self.err[max(0, self.err.find("mmlab: ")) :].strip().splitlines()


class Shell:
    """Runs `mmlab` in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        dropped = ("MMLAB_RUN_ID", "SLURM_JOB_ID", "TORCHELASTIC_RUN_ID")
        self.environment = {name: value for name, value in os.environ.items() if name not in dropped}
        self.environment |= {
            "MMLAB_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline",
            "COLUMNS": "160", "CUDA_VISIBLE_DEVICES": "",
        }  # fmt: skip
        self._preloaded: subprocess.Popen[str] | None = None
        self._count = 0

    def python(self, *words: str) -> Answer:
        """A fresh Python."""
        done = subprocess.run(
            [sys.executable, *words], cwd=self.folder, env=self.environment, capture_output=True, text=True,
            timeout=240, check=False,
        )  # fmt: skip
        return Answer(done.returncode, done.stdout, done.stderr)

    def __call__(self, *words: str) -> Answer:
        """A command, in a process forked from one that has imported everything."""
        if self._preloaded is None:
            self._preloaded = subprocess.Popen(
                [sys.executable, "-c", PRELOADED], cwd=self.folder, env=self.environment, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
        self._count += 1
        files = [self.folder / f"{self._count}.{name}" for name in ("out", "err")]
        assert self._preloaded.stdin is not None
        assert self._preloaded.stdout is not None
        self._preloaded.stdin.write(json.dumps([words, *map(str, files)]) + "\n")
        self._preloaded.stdin.flush()
        status = int(self._preloaded.stdout.readline())
        return Answer(status, *(file.read_text() for file in files))

    def runs(self) -> set[Path]:
        return set(self.folder.glob("runs/*/*"))

    def close(self) -> None:
        if self._preloaded is not None:
            assert self._preloaded.stdin is not None
            self._preloaded.stdin.close()
            self._preloaded.wait(20)
            self._preloaded.stdout.close()  # type: ignore[union-attr]
