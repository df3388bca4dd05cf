"""What is refused before anything is queued, and what walltimes, arrays and sizes mean."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import job_specs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmlab.launch.admission import check_cluster, check_job, memory_of
from mmlab.launch.array import array_tasks
from mmlab.launch.duration import duration_text, seconds_of
from mmlab.launch.job import JobSpec
from mmlab.launch.profile import Profile
from mmlab.launch.slurm import NodeGroup

CLUSTER = [
    NodeGroup("cpu", True, True, 3600, 8, 64, 250_000, 0),
    NodeGroup("gpu", False, True, 86_400, 3, 32, 500_000, 4),
    NodeGroup("gpu", False, True, 86_400, 2, 96, 900_000, 8),
    NodeGroup("old", False, False, None, 4, 8, 16_000, 1),
]


def asked(partition: str | None = None, words: tuple[str, ...] = (), **resources: Any) -> JobSpec:
    spec = job_specs.CPU
    return replace(
        spec,
        words=(*spec.words, *words),
        profile=Profile(partition=partition),
        resources=replace(spec.resources, **resources),
    )


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        (asked(nodes=0), "--nodes is 0: it must be at least 1"),
        (asked(gpus_per_node=1, tasks_per_node=2), "2 tasks on each node are more than its 1 GPUs"),
        (asked(words=("--trainer.devices", "2")), "--trainer.devices follows from --nodes"),
        (asked(words=("--trainer.num_nodes=2",)), "--trainer.num_nodes follows from --nodes"),
        (asked(time="2"), "--time 2 leaves nothing for training"),
        (asked(time="soon"), "'soon' is no walltime"),
        (asked(mem="lots"), "--mem lots: write such as 64G"),
    ],
)
def test_jobs_that_could_not_work(spec: JobSpec, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint.replace("(", r"\(")):
        check_job(spec, None)


def test_a_walltime_must_leave_room_for_the_save_that_was_measured() -> None:
    check_job(asked(time="5"), 200.0)
    with pytest.raises(ValueError, match="the last save took 5 min"):
        check_job(asked(time="5"), 300.0)


@pytest.mark.parametrize(
    "spec",
    [
        asked(time="1:00:00"),
        asked("gpu", nodes=5, gpus_per_node=4, tasks_per_node=4),
        asked("gpu", nodes=2, gpus_per_node=8, tasks_per_node=8),
        asked("cpu,gpu", time="1-0", nodes=3),
        asked("gpu", mem="900000"),
    ],
)
def test_jobs_that_the_cluster_can_run(spec: JobSpec) -> None:
    check_cluster(spec, CLUSTER)


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        (asked("gpuu"), "--partition gpuu: the cluster has none of that name: did you mean 'gpu'"),
        (asked("zzz"), "there are cpu, gpu, old"),
        (asked("old"), "partition old is not up"),
        (asked(time="2:00:00"), "--time 2:00:00 is above the limit of partition cpu, 60 min"),
        (asked(time="infinite"), "is above the limit of partition cpu"),
        (asked(nodes=9), "--nodes 9: partition cpu has 8 nodes"),
        (
            asked("gpu", nodes=3, gpus_per_node=8),
            "--nodes 3: partition gpu has 2 nodes that are large enough",
        ),
        (asked("gpu", gpus_per_node=9), "--gpus-per-node 9: nodes of partition gpu have 8 GPUs"),
        (asked(tasks_per_node=9, cpus_per_task=8), "9 tasks of 8 CPUs on each node: nodes of partition cpu"),
        (asked(mem="1T"), "--mem 1T: nodes of partition cpu have 250000 MB"),
    ],
)
def test_jobs_that_the_cluster_cannot_run(spec: JobSpec, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        check_cluster(spec, CLUSTER)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400), ("90:30", 5430), ("1:30:00", 5400), ("2-12", 216_000), ("2-12:30", 217_800),
        ("1-00:00:01", 86_401), ("infinite", None), ("UNLIMITED", None),
    ],
)  # fmt: skip
def test_walltimes_mean_what_slurm_means(text: str, seconds: int | None) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "1:2:3:4", "1-", "-5", "5 h", "0", "0-0:0:0", "٣"])
def test_what_is_no_walltime(text: str) -> None:
    with pytest.raises(ValueError, match="walltime"):
        seconds_of(text)


def test_durations_for_people() -> None:
    texts = [duration_text(seconds) for seconds in (-1, 45, 119, 130, 7190, 12_000, 172_000, 188_000)]
    assert texts == ["0 s", "45 s", "119 s", "2 min", "2 h", "3 h 20 min", "47 h 47 min", "2 d 4 h"]


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20), st.integers(1, 5)), min_size=1, max_size=4))
def test_tasks_of_an_array(parts: list[tuple[int, int, int]]) -> None:
    text = ",".join(f"{first}-{first + more}:{step}" for first, more, step in parts)
    expected = {
        n for first, more, step in parts for n in range(first, first + more + 1) if (n - first) % step == 0
    }
    assert array_tasks(f"{text}%3") == sorted(expected)


@pytest.mark.parametrize("text", ["", "a", "5-1", "0-5%0", "0-5%", "0-5:0", "1,,2", "0-9999999", "-1"])
def test_what_is_no_array(text: str) -> None:
    with pytest.raises(ValueError, match="--array"):
        array_tasks(text)


@pytest.mark.parametrize(("text", "megabytes"), [("64G", 65_536), ("4000", 4000), ("1t", 2**20), ("0", 0)])
def test_memory(text: str, megabytes: float) -> None:
    assert memory_of(text) == megabytes
