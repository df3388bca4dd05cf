"""slurm/train.sbatch and slurm/sweep.sbatch on a real cluster."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from cluster import ENDED
from site_folder import SMOKE, TINY, Site

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
FOLDER = SMOKE.parents[2] / "slurm"


@pytest.fixture(autouse=True)
def _python(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMLAB_PYTHON", sys.executable)
    (site.folder / "slurm").symlink_to(FOLDER)


def test_training_without_mmlab_on_the_login_node(site: Site) -> None:
    words = ["sbatch", "--parsable", "--nodes=2", "--job-name=by-hand", "slurm/train.sbatch"]
    job = site.cluster.run([*words, "--config", str(SMOKE), *TINY], cwd=site.folder).stdout.strip()
    state = site.cluster.wait_for(job, ENDED, 120)
    assert state == "COMPLETED", (site.folder / f"slurm-{job}.log").read_text()
    run = site.folder / "runs" / "by-hand" / f"job-{job}"
    assert (run / "metrics.json").exists()
    assert "num_nodes: 2" in (run / "config.yaml").read_text()
    assert site.jobs()[job]["run"] == str(run)
    assert str(run) in site.mmlab("jobs", "logs", job, "--rank", "0")


def test_a_sweep_over_the_lines_of_a_file(site: Site) -> None:
    lines = ["--seed_everything 7", " ", '--seed_everything "9', '--seed_everything "8"']
    (site.folder / "values").write_text("\n".join(lines) + "\n")
    words = ["sbatch", "--parsable", "--array=0-3", "--job-name=sweep", "slurm/sweep.sbatch", "values"]
    short = [*TINY, "--test_best", "false", "--trainer.limit_train_batches", "1"]
    job = site.cluster.run([*words, "--config", str(SMOKE), *short], cwd=site.folder).stdout.strip()
    states = [site.cluster.wait_for(f"{job}_{task}", ENDED, 180) for task in range(4)]
    logs = [(site.folder / f"slurm-{job}_{task}.log").read_text() for task in range(4)]
    assert states == ["COMPLETED", "FAILED", "FAILED", "COMPLETED"], logs
    runs = {task: site.folder / "runs" / "sweep" / f"job-{job}-{task}" for task in (0, 3)}
    for seed, run in zip((7, 8), runs.values(), strict=True):
        assert f"seed_everything: {seed}\n" in (run / "config.yaml").read_text()
    assert "values has nothing in line 2 for task 1" in logs[1]
    assert "values, line 3: " in logs[2]
    # The last task has the array's own number as SLURM_JOB_ID, and must not speak for the others.
    listed = {name: Path(str(record["run"])) for name, record in site.jobs().items()}
    assert listed == {f"{job}_{task}": run for task, run in runs.items()}
