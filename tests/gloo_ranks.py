"""Two gloo ranks that run functions of test modules.

A module of its own: a spawned process finds `_serve` by the name of its module, and `conftest` names the
conftest.py of whichever folder was loaded last.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
from jaxtyping import install_import_hook

RANKS = 2


def _serve(rank: int, port: int, pipe: Connection) -> None:
    """Run the functions that the parent sends, as one rank of a gloo group, with shapes checked there too."""
    install_import_hook("mmlab", "beartype.beartype")
    torch.set_num_threads(1)
    os.environ.pop("PL_GLOBAL_SEED", None)  # of a test that ran before
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
