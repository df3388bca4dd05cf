"""Trainings for the tests of faults, and what is compared of them."""

from __future__ import annotations

import csv
import json
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from site_folder import SMOKE, Site

STEPS = 24
HERE = Path(__file__).parent
FAST = (
    "--data.source.init_args.train", "64", "--data.source.init_args.val", "16",
    "--data.source.init_args.test", "16", "--data.batch_size", "16", "--data.loading.lanes.ranks", "2",
    "--data.loading.lanes.groups", "2", "--test_untrained", "false", "--trainer.log_every_n_steps", "1",
    "--trainer.max_epochs", str(STEPS // 4), "--trainer.enable_progress_bar", "false",
    "--checkpoint.minutes", "0.05", "--trainer.callbacks", "faults.Disturbed",
)  # fmt: skip


class Step(NamedTuple):
    """What a step saw and gave, over all ranks."""

    keys: tuple[str, ...]
    loss: float


class Training:
    """A training that is submitted, and what it leaves behind."""

    def __init__(self, site: Site, name: str, *words: str, faults: tuple[str, ...] = ()) -> None:
        """Submit it.

        Args:
            site: The folder.
            name: Of the run.
            words: For `mmlab submit` and `mmlab fit`.
            faults: Arguments of :class:`faults.Disturbed` beside its folder, `kind=hang`.
        """
        self.site = site
        self.folder = site.folder / f"steps-{name}"
        self.folder.mkdir()
        options = [f"folder={self.folder}", *faults]
        said = site.mmlab(
            "submit", "--config", str(SMOKE), "--name", name, "--gpus-per-node", "0", "--time", "20",
            "--nodes", "2", "--signal-seconds", "30", *FAST,
            *(word for option in options for word in _option(option)), *words,
        )  # fmt: skip
        self.job = said.split()[1].rstrip(":")
        self.run = Path(said.split("run directory: ")[1].splitlines()[0])

    @property
    def log(self) -> str:
        """What the job has said so far."""
        path = self.run / f"slurm-{self.job}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def lines(self) -> list[list[dict[str, Any]]]:
        """What each rank has written of its steps."""
        return read_lines(self.folder)

    def done(self) -> int:
        """Steps that the first rank has done, over all attempts."""
        lines = self.lines()
        return len(lines[0]) if lines else 0

    def attempts(self) -> dict[int, dict[int, Step]]:
        """The steps of each attempt, of all ranks."""
        return read_attempts(self.folder)

    def metrics(self) -> dict[str, Any]:
        """What the run came to."""
        found: dict[str, Any] = json.loads((self.run / "metrics.json").read_text())
        return found

    def history(self) -> list[dict[str, str]]:
        """All that was logged but how long things took."""
        with (self.run / "logs" / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        kept = ("step", "epoch", "train/loss", "val/", "test/")
        chosen = [{name: row[name] for name in row if name.startswith(kept) and row[name]} for row in rows]
        return [row for row in chosen if set(row) - {"step", "epoch"}]

    def ranks(self) -> dict[int, int]:
        """The processes that train, by rank; not their loaders' workers."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it may end meanwhile
                words = (folder / "cmdline").read_bytes().split(b"\0")
                lines = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
                known = dict(line.split("=", 1) for line in lines if "=" in line)
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if b"python" in words[0] and b"fit" in words and known.get("MMLAB_RUN_ID") == self.run.name:
                    found[int(folder.name)] = (parent, int(known["SLURM_PROCID"]))
        return {rank: pid for pid, (parent, rank) in found.items() if parent not in found}

    def orphans(self) -> list[str]:
        """Processes of the run that are left."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                words = path.read_bytes().decode(errors="replace")
                if str(self.run) in words:
                    found.append(words.replace("\0", " "))
        return found


def read_lines(folder: Path) -> list[list[dict[str, Any]]]:
    """What each rank of a training has written of its steps; the last line may not be whole."""
    texts = [path.read_text() for path in sorted(folder.glob("steps-rank*.jsonl"))]
    return [[json.loads(line) for line in text.split("\n")[:-1]] for text in texts]


def read_attempts(folder: Path) -> dict[int, dict[int, Step]]:
    """The steps of each attempt of a training, of all ranks."""
    found: dict[int, dict[int, Step]] = {}
    ranks = read_lines(folder)
    for first in ranks[0]:
        parts = [
            other["keys"]
            for lines in ranks
            for other in lines
            if (other["attempt"], other["step"]) == (first["attempt"], first["step"])
        ]
        keys = tuple(sorted(key for part in parts for key in part))
        found.setdefault(first["attempt"], {})[first["step"]] = Step(keys, first["loss"])
    return found


def same_run(found: Training, whole: Training) -> int:
    """Compare a run with the undisturbed one; returns how many steps it has done twice."""
    repeated = 0
    expected, seen, complete = whole.attempts()[0], set[int](), set[int]()
    for steps in found.attempts().values():
        for step, what in steps.items():
            # A rank that was killed may not have written down the last step of all.
            assert what.loss == expected[step].loss, step
            assert set(what.keys) <= set(expected[step].keys), step
            if what.keys == expected[step].keys:
                complete.add(step)
            repeated += step in seen
            seen.add(step)
    assert complete == set(expected)
    assert found.metrics() == whole.metrics()
    assert found.history() == whole.history()
    checkpoints = sorted(path.name for path in (found.run / "checkpoints").iterdir())
    kept = {name for name in checkpoints if ".damaged" not in name}
    wanted = {path.name for path in (whole.run / "checkpoints").iterdir()}
    assert wanted <= kept
    # Lightning does not remove the checkpoint that a run has gone on from.
    assert all(name.startswith("epoch") for name in kept - wanted)
    segments = [path.name for path in (found.run / "wandb").glob("offline-run-*")]
    assert len({name.rpartition("-")[2] for name in segments}) == 1, segments
    assert json.loads((found.run / "status.json").read_text())["state"] == "finished"
    assert found.orphans() == []
    return repeated


def _option(option: str) -> tuple[str, str]:
    name, _, value = option.partition("=")
    return f"--trainer.callbacks.init_args.{name}", value
