"""slurm/train.sbatch and slurm/sweep.sbatch on a real cluster."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
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
    (site.folder / "values").write_text('--seed_everything 7\n--seed_everything "8"\n')
    words = ["sbatch", "--parsable", "--array=0-2", "--job-name=sweep", "slurm/sweep.sbatch", "values"]
    short = [*TINY, "--test_best", "false", "--trainer.limit_train_batches", "1"]
    job = site.cluster.run([*words, "--config", str(SMOKE), *short], cwd=site.folder).stdout.strip()
    states = [site.cluster.wait_for(f"{job}_{task}", ENDED, 180) for task in range(3)]
    logs = [(site.folder / f"slurm-{job}_{task}.log").read_text() for task in range(3)]
    assert states == ["COMPLETED", "COMPLETED", "FAILED"], logs
    runs = [site.folder / "runs" / "sweep" / f"job-{job}-{task}" for task in range(2)]
    for seed, run in enumerate(runs, start=7):
        assert f"seed_everything: {seed}\n" in (run / "config.yaml").read_text()
    assert "values has no line 3 for task 2" in logs[2]
    assert Path(str(site.jobs()[f"{job}_1"]["run"])) == runs[1]
