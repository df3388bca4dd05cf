from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, ClusterError
from site_folder import Site


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A Slurm cluster of two nodes, one for each process of the tests."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip("tests of Slurm start a cluster of their own, as root on Debian or Ubuntu")
    folder = Path(tempfile.mkdtemp(prefix="mmlab-slurm-"))
    folder.chmod(0o755)  # munge refuses folders that others may write to, and nodes must read this one
    try:
        try:
            started = Cluster(folder)
        except ClusterError as error:
            pytest.skip(f"no Slurm cluster could be started here: {error}")
        yield started
        started.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def site(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A folder of its own to submit from."""
    return Site(cluster, tmp_path, monkeypatch)
