"""One training, disturbed again and again in ways drawn by chance: nothing is lost but steps since a save."""

from __future__ import annotations

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
    """SIGKILL to one of the ranks, which may be in the middle of a save."""
    ranks = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if (
                b"fit" in words
                and str(training.run).encode() in path.read_bytes()
                and b"srun" not in words[0]
            ):
                ranks.append(int(path.parent.name))
    if ranks:
        with suppress(ProcessLookupError):
            os.kill(random.choice(ranks), signal.SIGKILL)


def power_cut(training: Training) -> None:
    back = time.monotonic() + BOOT_SECONDS
    training.site.cluster.crash("node2")
    training.site.cluster.wait_for(training.job, ["PENDING"], PATIENCE)
    time.sleep(max(0.0, back - time.monotonic()))
    training.site.cluster.boot("node2")


KINDS: list[Callable[[Training], None]] = [signalled, requeued, preempted, rank_killed, power_cut]


def attempts(training: Training) -> int:
    return len({line["attempt"] for lines in training.lines()[:1] for line in lines})


def test_random_faults(place: Site) -> None:
    epochs = ["--trainer.max_epochs", str(max(6, FAULTS * STEPS // 4)), "--requeues", "1000"]
    begun = time.monotonic()
    whole = Training(place, "whole", *epochs)
    assert place.cluster.wait_for(whole.job, ENDED, PATIENCE) == "COMPLETED", whole.log
    undisturbed, begun = time.monotonic() - begun, time.monotonic()

    rng = random.Random(FAULTS)
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
        kind = rng.choice(KINDS)
        before = attempts(found)
        kind(found)
        counts[kind.__name__] += 1
        while attempts(found) <= before and place.cluster.state(found.job) not in ENDED:
            assert time.monotonic() < end + PATIENCE, found.log
            time.sleep(0.2)
    assert place.cluster.wait_for(found.job, ENDED, PATIENCE) == "COMPLETED", found.log
    lost = time.monotonic() - begun - undisturbed
    restarts, repeated = attempts(found) - 1, same_run(found, whole)
    print(f"\n| faults | {' | '.join(counts)} | restarts | steps repeated | time lost |")
    print("|---" * (4 + len(counts)) + "|")
    numbers = " | ".join(map(str, counts.values()))
    print(f"| {counts.total()} | {numbers} | {restarts} | {repeated} | {lost:.0f} s |")
    assert counts.total() == FAULTS
    assert restarts == FAULTS
    violent = counts["rank_killed"] + counts["power_cut"]
    assert repeated <= violent * 2 * STEPS
