"""`mmlab submit` and `mmlab jobs` against a real Slurm cluster of two nodes on this machine."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest
from cluster import ENDED, Cluster
from site_folder import SMOKE, Site

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def test_a_run_on_two_nodes_is_submitted_and_finishes(site: Site) -> None:
    job = site.submit("--nodes", "2", "--time", "10")
    record = site.jobs()[job]
    run = Path(str(record["run"]))
    assert run.parent == site.folder / "runs" / "smoke"
    frozen = json.loads((run / "submission.json").read_text())
    assert frozen["job"] == job
    assert frozen["command"][:2] == ["mmlab", "submit"]
    assert (run / "code" / "mmlab" / "launch" / "job.py").read_bytes() == (
        SMOKE.parents[2] / "mmlab" / "launch" / "job.py"
    ).read_bytes()
    assert site.cluster.wait_for(job, ENDED, 120) == "COMPLETED", (run / f"slurm-{job}.log").read_text()
    said = site.mmlab("jobs", "logs", job)
    assert "Starting with" in said or "distributed" in said
    assert site.mmlab("jobs", "logs", job, "--rank", "1") != said
    assert (run / "metrics.json").exists()
    # It ran from the copy, in the directory of submission, as one run of two ranks.
    config = (run / "config.yaml").read_text()
    assert "num_nodes: 2" in config
    record = json.loads((run / "run.json").read_text())
    assert record["command"][0].startswith(str(run / "code"))
    assert record["git_commit"] == frozen["code"][0]["commit"]
    assert not (run / "git.diff").exists()
    assert [path.name for path in run.parent.iterdir()] == [run.name]
    assert site.jobs()[job]["state"] == "COMPLETED"


def test_bad_input_of_two_ranks_is_not_begun_again(site: Site) -> None:
    job = site.submit("--nodes", "2", "--time", "10", "--trainer.max_epoch", "2")
    assert site.cluster.wait_for(job, ENDED, 120) == "FAILED"
    run = Path(str(site.jobs()[job]["run"]))
    log = (run / f"slurm-{job}.log").read_text()
    assert "max_epoch" in log
    assert "not begun again: it would be no better" in log
    assert "max_epoch" in (run / "failures.jsonl").read_text()


def test_cancel_and_requeue(site: Site) -> None:
    job = site.submit("--time", "10", "--nodes", "2")
    blocked = site.submit("--time", "10", "--dependency", f"afterany:{job}")
    assert site.jobs()[blocked]["reason"] == "Dependency"
    assert site.mmlab("jobs", "logs", blocked) == ""
    site.mmlab("jobs", "cancel", blocked)
    site.cluster.wait_for(job, ["RUNNING", "COMPLETED"], 30)
    site.mmlab("jobs", "requeue", job)
    site.cluster.wait_for(job, ["PENDING"], 30)
    site.mmlab("jobs", "cancel", job)
    site.cluster.wait_for(job, ["CANCELLED"], 30)
    assert {record["state"] for record in site.jobs().values()} == {"CANCELLED"}


def test_an_array_and_what_waits_for_it(site: Site) -> None:
    words = ["--seed_everything", "%a", "--trainer.limit_train_batches", "1", "--test_best", "false"]
    job = site.submit("--time", "10", "--array", "0-1%2", *words)
    after = site.submit("--time", "10", "--dependency", f"afterok:{job}", "--test_best", "false")
    for task in (f"{job}_0", f"{job}_1", after):
        assert site.cluster.wait_for(task, ENDED, 180) == "COMPLETED"
    jobs = site.jobs()
    runs = [Path(str(jobs[f"{job}_{task}"]["run"])) for task in (0, 1)]
    assert runs[0] != runs[1]
    for task, run in enumerate(runs):
        assert f"seed_everything: {task}" in (run / "config.yaml").read_text()
    assert "run directory" in site.mmlab("jobs", "logs", f"{job}_1", "--rank", "0")


def test_ranks_have_the_time_that_slurm_leaves_between_term_and_kill(site: Site) -> None:
    """srun must not kill the ranks when the job is told to end: see the batch script."""
    script = site.folder / "job.sh"
    text = site.cluster.run(
        [sys.executable, "-m", "mmlab", "submit", "--config", str(SMOKE), "--time", "10", "--nodes", "2",
         "--gpus-per-node", "0", "--dry-run", "--runs", str(site.folder)], cwd=site.folder,
    ).stdout  # fmt: skip
    begin, end = text.index("    " + sys.executable), text.index("    || status=$?")
    task = (
        "import signal, time; told = []; "
        "signal.signal(signal.SIGTERM, lambda *_: told.append(time.time())); "
        "print('ready', flush=True)\n"
        "while not told: time.sleep(0.05)\n"
        "time.sleep(3); print('saved', flush=True)"
    )
    (site.folder / "task.py").write_text(task)
    body = f"    {sys.executable} {site.folder / 'task.py'} \\\n"
    log = site.folder / "log"
    lines = [line for line in text[:begin].splitlines() if "--output" not in line]
    script.write_text("\n".join(lines) + "\n" + body + text[end:])
    job = site.cluster.run(["sbatch", "--parsable", f"--output={log}", str(script)]).stdout.strip()
    site.cluster.wait_for(job, ["RUNNING"], 30)
    limit = time.monotonic() + 30
    while not log.exists() or log.read_text().count("ready") < 2:
        assert time.monotonic() < limit
        time.sleep(0.1)
    site.cluster.run(["scancel", job])
    site.cluster.wait_for(job, ["CANCELLED"], 30)
    limit = time.monotonic() + 10
    while log.read_text().count("saved") < 2:
        assert time.monotonic() < limit, log.read_text()
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (
            ["--partition", "hihg"],
            "--partition hihg: the cluster has none of that name: did you mean 'high'?",
        ),
        (["--nodes", "3"], "--nodes 3: partition debug has 2 nodes that are large enough"),
        (["--gpus-per-node", "4"], "--gpus-per-node 4: nodes of partition debug have 2 GPUs"),
        (["--gpus-per-node", "0", "--tasks-per-node", "3"], "nodes of partition debug have 2 CPUs"),
    ],
)
def test_what_the_cluster_cannot_do_is_told_before_anything_is_queued(
    site: Site, words: list[str], complaint: str
) -> None:
    said = site.mmlab("submit", "--config", str(SMOKE), "--time", "10", *words, status=2)
    assert complaint in said
    assert not (site.folder / "runs").exists()
    assert site.jobs() == {}


def test_what_sbatch_refuses_leaves_nothing_behind(site: Site) -> None:
    words = ["--dependency", "whenever:1", "--gpus-per-node", "0"]
    said = site.mmlab("submit", "--config", str(SMOKE), "--time", "10", *words, status=2)
    assert said.startswith("mmlab: sbatch: ")
    assert list((site.folder / "runs" / "smoke").iterdir()) == []


def test_names_with_blanks_and_signs_reach_slurm_whole(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a b %j 'c' \"d\" #e"
    folder.mkdir()
    site = Site(cluster, folder, monkeypatch)
    job = site.submit("--time", "10", "--trainer.max_epochs", "0", "--test_best", "false")
    assert cluster.wait_for(job, ENDED, 120) == "COMPLETED"
    run = next((folder / "runs" / "smoke").iterdir())
    assert site.jobs()[job]["run"] == str(run)
    assert "run directory" in (run / f"slurm-{job}.log").read_text()


def test_a_node_whose_power_is_cut_comes_back(cluster: Cluster) -> None:
    cluster.run(["srun", "--nodelist=node2", "--nodes=1", "true"])
    cluster.crash("node2")
    cluster.boot("node2")
    # Slurm may first send the job to the node that is gone.
    said = cluster.run(["srun", "--nodelist=node2", "--nodes=1", "hostname"], seconds=300)
    assert said.stdout.strip() in ("node2", os.uname().nodename)  # the second where nodes share a host's name
