"""Shared set-up: shapes checked at run time, two threads at most, one pool of two gloo ranks."""

from __future__ import annotations

import os
import shutil
import subprocess
import time

# Where pytest itself runs two processes, each has one thread.
THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2
os.environ.update(
    HF_HUB_OFFLINE="1", WANDB_MODE="offline", WANDB_SILENT="true", TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", str(THREADS)),
)  # fmt: skip

from jaxtyping import install_import_hook

hook = install_import_hook("mmlab", "beartype.beartype")

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch
from gloo_ranks import Ranks

torch.set_num_threads(THREADS)
# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: of two processes neither is then left with a long file at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow") is not None}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def unseeded() -> None:
    """A run of one test sets the seed of the process; ranks, and the next test, have none."""
    os.environ.pop("PL_GLOBAL_SEED", None)


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """`ranks(function, *arguments)` runs a module-level function on two gloo ranks."""
    pool = Ranks()
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def public_data() -> Path:
    """The folder of small public data sets; tests that need it skip where it is missing."""
    default = Path(__file__).parents[1] / ".." / "shared" / "data"
    folder = Path(os.environ.get("MMLAB_TEST_DATA", default)).resolve()
    if not folder.is_dir():
        pytest.skip(f"no folder of public data at {folder}: set MMLAB_TEST_DATA")
    return folder


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 60 MB."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("this machine lets nobody mount")
    try:
        yield folder
    finally:
        # The processes that helped the run end a moment after it, and stand in the folder until then.
        deadline = time.monotonic() + 60
        while subprocess.run(["umount", folder], check=False).returncode != 0:
            assert time.monotonic() < deadline, "a process of the run is left"
            time.sleep(0.2)
