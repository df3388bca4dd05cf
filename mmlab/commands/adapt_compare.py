"""`mmlab adapt compare`: one config with several methods and seeds, each run in a process of its own."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mmlab.runs.comparison import Compared, Goal, comparison_table, measure
from mmlab.runs.directory import SHARED_ID, write_json

METHODS = (
    "full", "frozen", "probe", "lora", "adapters", "prompts", "prefix", "ia3", "bitfit", "layernorm",
    "staged",
)  # fmt: skip
"""In the order of the table; those that have an overlay."""
FINISHED = "finished.json"


class Plan(NamedTuple):
    """What is to be run."""

    configs: Sequence[str]
    methods: dict[str, Path]
    """Overlay of each."""
    seeds: Sequence[int]
    words: Sequence[str]
    """For every run."""
    out: Path


def run(arguments: argparse.Namespace) -> int:
    """Run what has not finished and print the table; returns the exit status, 1 where a run failed.

    Raises:
        ValueError: There is no such config or method.
    """
    missing = [path for path in arguments.config if not Path(path).is_file()]
    if missing:
        raise ValueError(f"no config {missing[0]}")
    first = Path(arguments.config[0])
    plan = Plan(
        arguments.config,
        find_methods(first, arguments.methods),
        arguments.seeds,
        arguments.words,
        arguments.out,
    )
    compared, goal = compare(plan)
    if goal is None:
        print("every run failed: nothing to compare", file=sys.stderr)
        return 1
    print(comparison_table(compared, goal))
    return 1 if any(one.failed for one in compared) else 0


def find_methods(config: Path, wanted: Sequence[str] | None) -> dict[str, Path]:
    """The overlays that methods stand for.

    Args:
        config: Overlays by name stand in `_base/` beside it or above.
        wanted: Names and files; None: every method of :data:`METHODS` that has an overlay.

    Raises:
        ValueError: There is no such overlay.
    """
    folders = [parent / "_base" for parent in config.resolve().parents if (parent / "_base").is_dir()]
    known = {path.stem: path for folder in reversed(folders) for path in sorted(folder.glob("*.yaml"))}
    if wanted is None:
        wanted = [name for name in METHODS if name in known]
    found = {}
    for name in wanted:
        path = known.get(name, Path(name))
        if not path.is_file():
            raise ValueError(
                f"no method {name!r}: name a YAML file or one of {', '.join(known) or '(no _base/ found)'}"
            )
        found[path.stem] = path
    if not found:
        raise ValueError(f"no methods: there is no _base/ beside {config} or above; name YAML files")
    return found


def compare(plan: Plan) -> tuple[list[Compared], Goal | None]:
    """Run what has not finished; returns what all runs reached and by which score."""
    compared, goal = [], None
    for method, directories in run_all(plan).items():
        runs, failed = [], []
        for seed, directory in directories.items():
            if directory is None:
                failed.append(seed)
                continue
            goal = Goal.of(directory) if goal is None else goal
            runs.append(measure(directory, goal.metric))
        compared.append(Compared(method, runs, failed))
    return compared, goal


def run_all(plan: Plan) -> dict[str, dict[int, Path | None]]:
    """Run what has not finished; returns the directories by method and seed, None for a run that failed."""
    count = len(plan.methods) * len(plan.seeds)
    found: dict[str, dict[int, Path | None]] = {}
    for number, (method, overlay) in enumerate(plan.methods.items()):
        for place, seed in enumerate(plan.seeds):
            title = f"{number * len(plan.seeds) + place + 1} of {count}: {method}, seed {seed}"
            found.setdefault(method, {})[seed] = _finish(plan, method, overlay, seed, title)
    return found


def _finish(plan: Plan, method: str, overlay: Path, seed: int, title: str) -> Path | None:
    """The directory of a run that has finished, now or before; None where it failed."""
    name = f"{method}-{seed}"
    folder = plan.out / name
    files = [*plan.configs, str(overlay)]
    words = [word for path in files for word in ("--config", path)]
    words += ["--seed_everything", str(seed), "--data.loading.seed", str(seed), "--test_untrained", "false"]
    words += [*plan.words, "--runs", str(plan.out), "--name", name]
    state = hashlib.sha256(json.dumps(words).encode())
    for path in files:
        state.update(Path(path).read_bytes())
    kept = _finished(folder, state.hexdigest())
    if kept is not None:
        print(f"{title}: kept, {kept}", file=sys.stderr)
        return kept
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{title} ...", file=sys.stderr, flush=True)
    before = set(folder.iterdir())
    log = plan.out / f"{name}.log"
    environment = {key: value for key, value in os.environ.items() if key != SHARED_ID}
    with log.open("wb") as output:
        status = subprocess.run(
            [sys.executable, "-m", "mmlab", "fit", *words], stdout=output, stderr=subprocess.STDOUT,
            env=environment, check=False,
        ).returncode  # fmt: skip
    made = [path for path in folder.iterdir() if path not in before and (path / "metrics.json").is_file()]
    if status != 0 or not made:
        print(f"{title}: failed with status {status}: {_complaint(log)} ({log})", file=sys.stderr)
        return None
    write_json(folder / FINISHED, {"state": state.hexdigest(), "run": made[0].name})
    return made[0]


def _finished(folder: Path, state: str) -> Path | None:
    """The run that finished with these words and configs, if its directory is still there."""
    done = folder / FINISHED
    if not done.is_file():
        return None
    record = json.loads(done.read_text(encoding="utf-8"))
    run = folder / str(record["run"])
    return run if record["state"] == state and (run / "metrics.json").is_file() else None


def _complaint(log: Path) -> str:
    """The line of a log that says what was wrong."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    said = [line for line in lines if line.startswith("mmlab: ")]
    return (said or lines or ["it said nothing"])[-1]
