"""A job that is disturbed gives what an undisturbed one gives, to the last digit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from cluster import ENDED, Cluster, started
from fault_runs import FAST, HERE, STEPS, Training, read_attempts, same_run
from site_folder import SMOKE, Site

from mmlab.parallel.stored import damage

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(1800)]
PATIENCE = 600.0
"""Seconds; a machine that others use, too."""
FROZEN_NORM = "--model.init_args.model.init_args.image.init_args.encoder.init_args.freeze_batch_norm"


@pytest.fixture(scope="module")
def place(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A folder that all trainings of this file share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        site = Site(cluster, tmp_path_factory.mktemp("faults"), patch)
        patch.setenv("PYTHONPATH", f"{HERE.parents[1]}:{HERE}")
        yield site


def wait_for_steps(training: Training, steps: int) -> None:
    """Until the first rank has done so many steps, over all attempts."""
    end = time.monotonic() + PATIENCE
    while training.done() < steps:
        assert time.monotonic() < end, training.log
        assert training.site.cluster.state(training.job) not in ENDED, training.log
        time.sleep(0.2)


def finish(training: Training) -> str:
    return training.site.cluster.wait_for(training.job, ENDED, PATIENCE)


def control(training: Training, *words: str) -> None:
    training.site.cluster.run(words)


def undisturbed(place: Site) -> Training:
    training = Training(place, "whole")
    assert finish(training) == "COMPLETED", training.log
    return training


def by_signal(place: Site) -> Training:
    """`scancel --signal=USR1`."""
    training = Training(place, "usr1")
    wait_for_steps(training, 7)
    control(training, "scancel", "--signal=USR1", training.job)
    assert finish(training) == "COMPLETED", training.log
    assert "stopped by SIGUSR1" in training.log
    assert training.log.count("requeued after SIGUSR1") == 1
    return training


def by_walltime(place: Site) -> Training:
    """The end of the time that was asked for, 30 seconds ahead."""
    # Slurm looks at the time every 30 seconds.
    training = Training(place, "walltime", faults=("seconds=2.0",))
    wait_for_steps(training, 2)
    control(training, "scontrol", "update", f"JobId={training.job}", "EndTime=now+35")
    training.site.cluster.wait_for(training.job, ["PENDING"], PATIENCE)
    control(training, "scontrol", "update", f"JobId={training.job}", "TimeLimit=20")
    assert finish(training) == "COMPLETED", training.log
    assert "stopped by SIGUSR1" in training.log
    return training


def by_requeue(place: Site) -> Training:
    """`scontrol requeue`, as before maintenance."""
    training = Training(place, "requeued")
    wait_for_steps(training, 9)
    control(training, "scontrol", "requeue", training.job)
    assert finish(training) == "COMPLETED", training.log
    assert "Slurm requeues it" in training.log
    return training


def with_a_damaged_checkpoint(place: Site) -> Training:
    """The newest checkpoint is cut off while the job waits."""
    training = Training(place, "damaged")
    wait_for_steps(training, 7)
    control(training, "scancel", "--signal=USR1", training.job)
    training.site.cluster.wait_for(training.job, ["PENDING"], PATIENCE)
    last = training.run / "checkpoints" / "last.ckpt"
    with last.open("r+b") as file:
        file.truncate(last.stat().st_size // 2)
    assert finish(training) == "COMPLETED", training.log
    assert "last.ckpt is damaged" in training.log
    return training


def killed(place: Site) -> Training:
    """One rank is killed."""
    training = Training(place, "killed", faults=("kind=kill", "step=10"))
    assert finish(training) == "COMPLETED", training.log
    assert "a rank was killed, at step 9" in training.log
    assert "requeued for attempt 2 of 4" in training.log
    return training


def hung(place: Site) -> Training:
    """One rank hangs."""
    training = Training(
        place, "hung", "--watchdog.minutes", "0.2", "--watchdog.first", "5", faults=("kind=hang", "step=10")
    )
    assert finish(training) == "COMPLETED", training.log
    reports = sorted((training.run / "hangs").iterdir())
    assert {path.stem.rpartition("-")[2] for path in reports} == {"rank0", "rank1"}
    texts = {path.stem.rpartition("-")[2]: path.read_text() for path in reports}
    assert "on_train_batch_end" in texts["rank1"]
    assert "time.sleep" in texts["rank1"] or "faults.py" in texts["rank1"]
    assert "requeued for attempt 2 of 4" in training.log
    return training


ORDERLY = [by_signal, by_walltime, by_requeue]
"""After these no step is done twice."""
VIOLENT = [with_a_damaged_checkpoint, killed, hung]
"""After these at most the steps since the last good checkpoint."""


@pytest.fixture(scope="module")
def trainings(place: Site) -> Iterator[dict[str, Future[Training]]]:
    """All of them, two at a time: Slurm waits some seconds before it begins a job again."""
    ways: list[Callable[[Site], Training]] = [undisturbed, *ORDERLY, *VIOLENT]
    with ThreadPoolExecutor(2) as pool:
        yield {way.__name__: pool.submit(way, place) for way in ways}


@pytest.mark.parametrize("way", [*ORDERLY, *VIOLENT], ids=lambda way: way.__name__)
def test_a_disturbed_run_ends_as_an_undisturbed_one(
    trainings: dict[str, Future[Training]], way: Callable[[Site], Training]
) -> None:
    found, whole = trainings[way.__name__].result(), trainings["undisturbed"].result()
    repeated = same_run(found, whole)
    assert len(found.attempts()) == 2
    assert repeated == 0 if way in ORDERLY else repeated <= STEPS // 2
    print(f"{way.__name__}: {repeated} steps repeated")


@pytest.mark.parametrize("mode", ["REQUEUE", "CANCEL"])
def test_a_partition_that_preempts(trainings: dict[str, Future[Training]], place: Site, mode: str) -> None:
    """By itself Slurm does not queue again what it has cancelled."""
    whole = trainings["undisturbed"].result()
    found = Training(place, mode, "--partition", "low", "--data.loading.num_workers", "1")
    wait_for_steps(found, 7)
    control(found, "scontrol", "update", "PartitionName=low", f"PreemptMode={mode}")
    try:
        high = place.cluster.run(
            ["sbatch", "--parsable", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null",
             "--wrap", "sleep 3"], cwd=place.folder,
        ).stdout.strip()  # fmt: skip
        assert place.cluster.wait_for(high, ENDED, PATIENCE) == "COMPLETED"
    finally:
        control(found, "scontrol", "update", "PartitionName=low", "PreemptMode=REQUEUE")
    assert finish(found) == "COMPLETED", found.log
    assert "stopped by SIGTERM" in found.log
    assert ("requeued after SIGTERM" in found.log) is (mode == "CANCEL")
    assert same_run(found, whole) == 0


def test_a_node_that_loses_power(trainings: dict[str, Future[Training]], place: Site) -> None:
    whole = trainings["undisturbed"].result()
    found = Training(place, "power")
    wait_for_steps(found, 12)
    place.cluster.crash("node2")
    place.cluster.wait_for(found.job, ["PENDING"], PATIENCE)
    place.cluster.boot("node2")
    assert finish(found) == "COMPLETED", found.log
    assert same_run(found, whole) <= STEPS // 2


def test_a_disk_that_is_full_for_a_while(
    trainings: dict[str, Future[Training]], place: Site, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trainings["undisturbed"].result()
    # Nodes see what was mounted before they were started.
    with started(required=True) as cluster:
        site = Site(cluster, place.folder, monkeypatch)
        monkeypatch.setenv("PYTHONPATH", f"{HERE.parents[1]}:{HERE}")
        found = Training(site, "full", "--runs", str(disk / "runs"))
        last, filler = found.run / "checkpoints" / "last.ckpt", disk / "filler"
        wait_for_steps(found, 6)
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        before = last.stat().st_mtime_ns
        wait_for_steps(found, 18)
        assert last.stat().st_mtime_ns == before
        assert damage(last) is None
        filler.unlink()
        assert finish(found) == "COMPLETED", found.log
        assert same_run(found, whole) == 0
        assert damage(last) is None
        assert not list(found.run.rglob(".*.part"))


def test_four_tasks_that_become_two(place: Site) -> None:
    # Statistics of a batch norm that is trained are each rank's own, so they change with the ranks.
    four = ("--tasks-per-node", "2", "--data.loading.lanes.ranks", "4", FROZEN_NORM, "true")
    whole = Training(place, "four", *four)
    assert finish(whole) == "COMPLETED", whole.log
    found = Training(place, "elastic", *four)
    wait_for_steps(found, 7)
    control(found, "scontrol", "requeuehold", found.job)
    place.cluster.wait_for(found.job, ["PENDING"], PATIENCE)
    control(found, "scontrol", "update", f"JobId={found.job}", "NumNodes=1", "NumTasks=2", "NumCPUs=2")
    control(found, "scontrol", "release", found.job)
    assert finish(found) == "COMPLETED", found.log
    attempts = found.attempts()
    assert sorted(step for steps in attempts.values() for step in steps) == list(range(STEPS))
    assert [len(line) for line in found.lines()] == [STEPS, STEPS, len(attempts[0]), len(attempts[0])]
    batches = {step: what.keys for steps in attempts.values() for step, what in steps.items()}
    assert batches == {step: what.keys for step, what in whole.attempts()[0].items()}
    assert found.metrics() == pytest.approx(whole.metrics(), rel=1e-5)
    assert len(found.history()) == len(whole.history())
    for row, expected in zip(found.history(), whole.history(), strict=True):
        assert {k: float(v) for k, v in row.items()} == pytest.approx(
            {k: float(v) for k, v in expected.items()}, rel=1e-5
        )


def test_the_same_failure_twice_ends_the_run(place: Site) -> None:
    found = Training(place, "raises", faults=("kind=raise", "step=6", "always=true"))
    assert finish(found) == "FAILED", found.log
    assert (
        "not begun again: twice the same at step 6: RuntimeError: made on purpose; its samples: " in found.log
    )
    assert len(found.attempts()) == 2


def test_an_array_of_which_some_are_preempted(place: Site) -> None:
    folder = place.folder / "steps-array"
    for task in range(6):
        (folder / str(task)).mkdir(parents=True)
    said = place.mmlab(
        "submit", "--config", str(SMOKE), "--name", "array", "--gpus-per-node", "0", "--time", "20",
        "--nodes", "1", "--partition", "low", "--array", "0-5%2", *FAST, "--trainer.max_epochs", "3",
        "--trainer.callbacks.init_args.folder", f"{folder}/%a",
    )  # fmt: skip
    job, end = said.split()[1].rstrip(":"), time.monotonic() + PATIENCE
    while len(list(folder.glob("*/*.jsonl"))) < 2:
        assert time.monotonic() < end
        time.sleep(0.2)
    place.cluster.run(
        ["sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap", "sleep 1"],
        cwd=place.folder,
    )
    for task in range(6):
        assert place.cluster.wait_for(f"{job}_{task}", ENDED, PATIENCE) == "COMPLETED"
    tasks = [list(read_attempts(folder / str(task)).values()) for task in range(6)]
    runs = sorted(path.parent for path in (place.folder / "runs" / "array").glob("*/status.json"))
    # All six are the same training, so those that nobody disturbed say what the others must come to.
    restarts = [len(attempts) - 1 for attempts in tasks]
    assert sum(restarts) > 0
    assert len(runs) == 6
    whole = restarts.index(0)
    for attempts, run in zip(tasks, runs, strict=True):
        assert [step for steps in attempts for step in steps] == list(range(12))
        assert {k: v for steps in attempts for k, v in steps.items()} == tasks[whole][0]
        assert (run / "metrics.json").read_text() == (runs[whole] / "metrics.json").read_text()
