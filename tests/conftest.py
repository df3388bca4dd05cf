"""Shared set-up: shapes checked at run time, two threads at most, one pool of two gloo ranks."""

from __future__ import annotations

import os

# Where pytest itself runs two processes, each has one thread.
THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2
os.environ.update(
    HF_HUB_OFFLINE="1", WANDB_MODE="offline", WANDB_SILENT="true", TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", str(THREADS)),
)  # fmt: skip

from jaxtyping import install_import_hook

hook = install_import_hook("mmlab", "beartype.beartype")

import multiprocessing
import socket
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

torch.set_num_threads(THREADS)
RANKS = 2


def _serve(rank: int, port: int, pipe: Connection) -> None:
    """Run the functions that the parent sends, as one rank of a gloo group."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=RANKS
    )
    while (job := pipe.recv()) is not None:
        function, arguments = job
        try:
            pipe.send((True, function(*arguments)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))
    torch.distributed.destroy_process_group()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: of two processes neither is then left with a long file at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow") is not None}
    items.sort(key=lambda item: item.path not in slow)


class Ranks:
    """Two gloo processes, started once for all tests."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        context = multiprocessing.get_context("spawn")
        self.pipes, self.processes = [], []
        for rank in range(RANKS):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, port, theirs), daemon=True)
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Run a function of a test module on both ranks; returns what each returned."""
        for pipe in self.pipes:
            pipe.send((function, arguments))
        answers = []
        for pipe in self.pipes:
            assert pipe.poll(400), f"{function.__name__}: a rank hangs"
            answers.append(pipe.recv())
        for fine, answer in answers:
            assert fine, answer
        return [answer for _, answer in answers]

    def close(self) -> None:
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            pipe.send(None)
            process.join(10)
            if process.is_alive():
                process.kill()


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
