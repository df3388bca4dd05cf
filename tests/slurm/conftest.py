from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, started
from site_folder import Site


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A Slurm cluster of two nodes, one for each process of the tests."""
    # CI requires one: its tests must not be left out unseen.
    with started(required=os.environ.get("MMLAB_TEST_SLURM") == "required") as cluster:
        yield cluster


@pytest.fixture
def site(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A folder of its own to submit from."""
    return Site(cluster, tmp_path, monkeypatch)
