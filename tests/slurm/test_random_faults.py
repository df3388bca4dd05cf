"""One training, disturbed again and again in ways drawn by chance: nothing is lost but steps since a save."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from cluster import ENDED, Cluster
from fault_runs import HERE, Training, same_run
from site_folder import Site

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(5400)]
FAULTS = int(os.environ.get("MMLAB_FAULTS", "2"))
"""So many in a row. Half an hour: `MMLAB_FAULTS=30 pytest -m slow -s tests/slurm/test_random_faults.py`"""
KINDS = os.environ.get("MMLAB_FAULT_KINDS", "signalled requeued preempted rank_killed saver_killed power_cut")
"""Functions of this file, of which each fault is one."""
PARTS = ".*.part"
"""Files of a checkpoint that is not complete."""
PATIENCE = 600.0
STEPS = 8
"""At most so many steps go by from one fault to the next."""
BOOT_SECONDS = 120.0
"""From losing its power to being back, as a server would take. On a node that is back within 90 seconds Slurm
may end a second attempt (docs/slurm.md), and then a restart would not be this test's doing."""


@pytest.fixture
def place(cluster: Cluster, tmp_path: Path) -> Iterator[Site]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        site = Site(cluster, tmp_path, patch)
        patch.setenv("PYTHONPATH", f"{HERE.parents[1]}:{HERE}")
        yield site


def signalled(training: Training) -> None:
    training.site.cluster.run(["scancel", "--signal=USR1", training.job])


def requeued(training: Training) -> None:
    training.site.cluster.run(["scontrol", "requeue", training.job])


def preempted(training: Training) -> None:
    training.site.cluster.run(
        ["sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap", "sleep 1"],
        cwd=training.site.folder,
    )


def rank_killed(training: Training) -> None:
    """SIGKILL to one of the ranks."""
    end = time.monotonic() + PATIENCE
    while not (ranks := list(training.ranks().values())) or _failed_here(training):
        assert time.monotonic() < end, training.log
        time.sleep(0.1)
    with suppress(ProcessLookupError):
        os.kill(random.choice(ranks), signal.SIGKILL)


def saver_killed(training: Training) -> None:
    """SIGKILL to the first rank at any moment of a save, but not of the first one, which is its progress."""
    folder, end = training.run / "checkpoints", time.monotonic() + PATIENCE
    before = _saved(folder)
    while not (ranks := training.ranks()) or _saved(folder) == before:
        assert time.monotonic() < end, training.log
        time.sleep(0.1)
    while not list(folder.glob(PARTS)) or _failed_here(training):
        assert time.monotonic() < end, training.log
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.02))
    with suppress(ProcessLookupError):
        os.kill(ranks[0], signal.SIGKILL)


def _failed_here(training: Training) -> bool:
    """Whether it is at the step of its last failure: the same twice ends a run, and rightly so."""
    path = training.run / "failures.jsonl"
    steps = [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []
    now = training.lines()[0][-1]["step"] + 1
    return bool(steps) and abs(steps[-1] - now) <= 1


def _saved(folder: Path) -> int:
    last = folder / "last.ckpt"
    return last.stat().st_mtime_ns if last.exists() else 0


def power_cut(training: Training) -> None:
    """Of the node with the batch shell and the first rank, or of the other."""
    back, node = time.monotonic() + BOOT_SECONDS, random.choice(["node1", "node2"])
    training.site.cluster.crash(node)
    training.site.cluster.wait_for(training.job, ["PENDING"], PATIENCE)
    time.sleep(max(0.0, back - time.monotonic()))
    training.site.cluster.boot(node)


def attempts(training: Training) -> int:
    return len({line["attempt"] for lines in training.lines()[:1] for line in lines})


def test_random_faults(place: Site) -> None:
    epochs = ["--trainer.max_epochs", str(max(6, FAULTS * STEPS // 4)), "--requeues", "1000"]
    begun = time.monotonic()
    whole = Training(place, "whole", *epochs)
    assert place.cluster.wait_for(whole.job, ENDED, PATIENCE) == "COMPLETED", whole.log
    undisturbed, begun = time.monotonic() - begun, time.monotonic()

    rng, cut_off = random.Random(FAULTS + 7), 0  # of the two that CI has, one is in a save
    kinds: list[Callable[[Training], None]] = [globals()[name] for name in KINDS.split()]
    found, counts = Training(place, "faults", "--partition", "low", *epochs), Counter[str]()
    for number in range(FAULTS):
        wanted, end = found.done() + rng.randint(1, STEPS // 2), time.monotonic() + PATIENCE
        while (found.done() < wanted or attempts(found) <= number) and place.cluster.state(
            found.job
        ) not in ENDED:
            assert time.monotonic() < end, found.log
            time.sleep(0.2)
        if place.cluster.state(found.job) in ENDED:
            break
        kind = rng.choice(kinds)
        before = attempts(found)
        kind(found)
        counts[kind.__name__] += 1
        cut_off += bool(list((found.run / "checkpoints").glob(PARTS)))
        while attempts(found) <= before and place.cluster.state(found.job) not in ENDED:
            assert time.monotonic() < end + PATIENCE, found.log
            time.sleep(0.2)
    assert place.cluster.wait_for(found.job, ENDED, PATIENCE) == "COMPLETED", found.log
    lost = time.monotonic() - begun - undisturbed
    restarts, repeated = attempts(found) - 1, same_run(found, whole)
    print(f"\n| faults | {' | '.join(counts)} | saves cut off | restarts | steps repeated | time lost |")
    print("|---" * (5 + len(counts)) + "|")
    numbers = " | ".join(map(str, counts.values()))
    print(f"| {counts.total()} | {numbers} | {cut_off} | {restarts} | {repeated} | {lost:.0f} s |")
    assert counts.total() == FAULTS
    assert restarts == FAULTS
    violent = counts["rank_killed"] + counts["saver_killed"] + counts["power_cut"]
    assert repeated <= violent * 2 * STEPS
