"""A Slurm cluster of the tests' own: started by slurm/local_cluster.sh, asked by Slurm's commands."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "slurm" / "local_cluster.sh"
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
"""States after which a job does nothing more by itself."""
_PORTS = range(26_900, 32_000)
"""Below those that a system gives out by itself, above those that Lightning takes."""


class ClusterError(RuntimeError):
    """The cluster does not start."""


class Cluster:
    """Virtual nodes `node1`, `node2`, ... on this machine, with partitions debug, low, high and grace."""

    def __init__(self, folder: Path, *, nodes: int = 2, settings: dict[str, str] | None = None) -> None:
        """Start it.

        Args:
            folder: Of its own; short, for it holds a socket.
            nodes: Number of virtual nodes.
            settings: Further settings of the script, such as `{"KILL_WAIT": "10"}`.

        Raises:
            ClusterError: With what the script says.
        """
        self.folder = folder
        self.nodes = nodes
        names = {"DIR": str(folder), "PORT": str(_free_ports(nodes + 1)), **(settings or {})}
        self._settings = {f"MMLAB_SLURM_{name}": value for name, value in names.items()}
        self._script("up", str(nodes))

    def environment(self) -> dict[str, str]:
        """This process's environment, but inside no job, with what clients need to find the cluster."""
        dropped = ("SLURM_", "SBATCH_", "TORCHELASTIC_", "MMLAB_RUN_ID", "MASTER_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
        return kept | {"SLURM_CONF": str(self.folder / "etc" / "slurm.conf")}

    def run(
        self, words: Sequence[str], *, cwd: Path | None = None, check: bool = True, seconds: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a command that may talk to the cluster.

        Args:
            words: Such as `["sbatch", "--parsable", "job.sh"]`.
            cwd: Where.
            check: Whether a status that is not 0 fails the test, with what was said.
            seconds: It may take.
        """
        done = subprocess.run(
            list(words), cwd=cwd, env=self.environment(), capture_output=True, text=True, timeout=seconds,
            check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done

    def state(self, job: str) -> str:
        """The state of a job, or task of an array (`1001_3`), such as `RUNNING`; `GONE` where not known."""
        done = self.run(["squeue", "-h", "-r", "-t", "all", "-j", job, "-o", "%T"], check=False)
        return done.stdout.split("\n")[0].strip() or "GONE"

    def wait_for(self, job: str, states: Sequence[str], seconds: float = 60) -> str:
        """Wait until a job is in one of some states; the state.

        Raises:
            AssertionError: It is not, in so many seconds.
        """
        end = time.monotonic() + seconds
        while (state := self.state(job)) not in states:
            wrong = f"job {job} is {state} after {seconds} s, not {' or '.join(states)}"
            assert state not in ENDED, wrong
            assert time.monotonic() < end, wrong
            time.sleep(0.3)
        return state

    def crash(self, node: str) -> None:
        """Cut the power of a node: everything on it is gone at once; Slurm notices in about 30 s."""
        self._script("crash", node)

    def boot(self, node: str) -> None:
        """Start a crashed node again; returns when it takes jobs."""
        self._script("boot", node)

    def close(self) -> None:
        """End all jobs, then the cluster."""
        self._script("down")

    def _script(self, *words: str) -> None:
        done = subprocess.run(
            [str(SCRIPT), *words], env=os.environ | self._settings, capture_output=True, text=True,
            timeout=400, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if done.returncode != 0:
            raise ClusterError(f"{SCRIPT.name} {' '.join(words)}: {done.stderr.strip()[-800:]}")


@contextmanager
def started(*, required: bool) -> Iterator[Cluster]:
    """Start a cluster, and end it when asked to go on; one that does not start skips the test.

    Args:
        required: It is an error instead.

    Raises:
        ClusterError: It is required and does not start.
    """
    if not required and (os.geteuid() != 0 or shutil.which("apt-get") is None):
        pytest.skip("tests of Slurm start a cluster of their own, as root on Debian or Ubuntu")
    folder = Path(tempfile.mkdtemp(prefix="mmlab-slurm-"))
    folder.chmod(0o755)  # munge refuses folders that others may write to, and nodes must read this one
    try:
        try:
            cluster = Cluster(folder)
        except ClusterError as error:
            if required:
                raise
            pytest.skip(f"no Slurm cluster could be started here: {error}")
        try:
            yield cluster
        finally:
            cluster.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _free_ports(count: int) -> int:
    """The first of some ports in a row at which nobody listens; by chance, as others look too."""
    for _ in range(100):
        first = random.SystemRandom().randrange(_PORTS.start, _PORTS.stop - count)
        if all(_is_free(port) for port in range(first, first + count)):
            return first
    raise ClusterError(f"no {count} free ports in a row between {_PORTS.start} and {_PORTS.stop}")


def _is_free(port: int) -> bool:
    with socket.socket() as one:
        try:
            one.bind(("", port))
        except OSError:
            return False
    return True
