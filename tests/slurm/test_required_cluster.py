"""Whether tests that need a cluster are left out, or fail, where none starts."""

from __future__ import annotations

from pathlib import Path

import cluster
import pytest


class Broken:
    def __init__(self, folder: Path) -> None:
        raise cluster.ClusterError(f"nothing in {folder}")


def test_a_cluster_that_does_not_start_skips_only_where_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "Cluster", Broken)
    with pytest.raises(pytest.skip.Exception), cluster.started(required=False):
        pass
    with pytest.raises(cluster.ClusterError, match="nothing in"), cluster.started(required=True):
        pass
