"""A folder of a user of the tests' cluster, and tiny trainings to submit from there."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from cluster import Cluster

SMOKE = Path(__file__).parents[2] / "experiments" / "retrieval" / "smoke.yaml"
TINY = (
    "--data.source.init_args.train", "64", "--data.source.init_args.val", "16",
    "--data.source.init_args.test", "16", "--data.batch_size", "16", "--trainer.max_epochs", "1",
    "--test_untrained", "false", "--trainer.callbacks", "[]", "--trainer.enable_progress_bar", "false",
)  # fmt: skip


class Site:
    """A folder to submit from, with a cache and a list of submissions of its own."""

    def __init__(self, cluster: Cluster, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cluster, self.folder = cluster, folder
        monkeypatch.setenv("MMLAB_CACHE", str(folder / "cache"))
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        monkeypatch.setenv("PYTHONPATH", str(SMOKE.parents[2]))

    def mmlab(self, *words: str, status: int = 0) -> str:
        done = self.cluster.run([sys.executable, "-m", "mmlab", *words], cwd=self.folder, check=False)
        assert done.returncode == status, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout if status == 0 else done.stderr

    def submit(self, *words: str) -> str:
        said = self.mmlab("submit", "--config", str(SMOKE), *TINY, "--gpus-per-node", "0", *words)
        return said.split()[1].rstrip(":")

    def jobs(self) -> dict[str, dict[str, object]]:
        """Those of this folder; the cluster has others of earlier tests."""
        records = map(json.loads, self.mmlab("jobs", "--json").splitlines())
        return {record["id"]: record for record in records if Path(record["run"]).is_relative_to(self.folder)}
