"""What a report of a hang says: the collective and who called it, threads, workers, samples."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from mmlab import collectives
from mmlab.callbacks import hang_report
from mmlab.callbacks.hang_report import Call, calls, main_calls, waits_in, write_report


def test_a_collective_is_named_with_who_called_it() -> None:
    stack = [
        Call("/x/torch/distributed/distributed_c10d.py", 10, "all_reduce"),
        Call("/x/torch/distributed/c10d_logger.py", 83, "wrapper"),
        Call("/x/torch/distributed/distributed_c10d.py", 20, "all_gather_object"),
        Call("/x/lightning/pytorch/trainer.py", 1, "between"),
        Call("/x/mmlab/collectives.py", 7, "host_total"),
        Call("/x/torch/optim/sgd.py", 1, "step"),
    ]
    assert (
        waits_in(stack)
        == "waits in the collective all_reduce, called by host_total (/x/mmlab/collectives.py:7)"
    )
    assert waits_in(stack[4:]) == "is in host_total (/x/mmlab/collectives.py:7)"
    assert waits_in([]) == "has ended"


def test_the_backward_pass_is_named() -> None:
    seen: list[str] = []

    class Looks(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
            stack = main_calls()
            while stack[0].function != "_engine_run_backward":
                stack.pop(0)
            seen.append(waits_in(stack))
            return gradients[0]

    Looks.apply(torch.ones(1, requires_grad=True)).backward()
    assert "is in the backward pass, called by test_the_backward_pass_is_named" in seen[0]


def _wait_for_the_other() -> str:
    """Rank 0 comes late to a collective; what does another thread of rank 1 see meanwhile?"""
    if collectives.rank() == 0:
        time.sleep(1.5)
        collectives.host_total([1])
        return ""
    seen: list[str] = []

    def look() -> None:
        time.sleep(0.7)
        seen.append(waits_in(main_calls()))

    thread = threading.Thread(target=look)
    thread.start()
    collectives.host_total([1])
    thread.join()
    return seen[0]


def test_a_rank_that_waits_in_gloo_can_be_looked_at(ranks: Any) -> None:
    _, seen = ranks(_wait_for_the_other)
    assert "waits in the collective all_reduce, called by host_total (" in seen
    assert "collectives.py:" in seen


def _sleep_with(path: str) -> None:
    with open(path):
        time.sleep(60)


def _opened(pid: int | None, path: Path) -> bool:
    return any(os.path.realpath(link) == str(path) for link in Path(f"/proc/{pid}/fd").iterdir())


def test_a_report_has_threads_workers_and_samples(tmp_path: Path) -> None:
    shard = tmp_path / "x-000000.tar"
    shard.write_text("")
    worker = multiprocessing.get_context("fork").Process(target=_sleep_with, args=(str(shard),))
    worker.start()
    stop = threading.Event()

    def waits_for_an_event() -> None:
        stop.wait()

    thread = threading.Thread(target=waits_for_an_event, name="a thread")
    thread.start()
    deadline = time.monotonic() + 60
    while "(sleeping)" not in Path(f"/proc/{worker.pid}/status").read_text() or not _opened(
        worker.pid, shard
    ):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    path = tmp_path / "hangs" / "report.txt"
    try:
        write_report(path, "the head", lambda step: [("s.tar", f"key {step}")], 7)
    finally:
        stop.set()
        thread.join()
        worker.kill()
        worker.join()
    text = path.read_text()
    assert text.startswith("the head\n")
    assert "VmRSS" in text
    # This thread writes the report; the watchdog's would leave itself out in the same way.
    assert "thread a thread, innermost call first:" in text
    assert "in waits_for_an_event" in text
    assert f"loader worker {worker.pid}: S (sleeping)" in text
    assert f"  {shard}\n" in text
    assert "samples of this rank at this step, 7:\n  s.tar: key 7\n" in text
    assert "samples of this rank at the next step, 8:\n  s.tar: key 8\n" in text


def test_an_index_that_does_not_answer_leaves_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hang_report, "READING", 0.1)
    stop = threading.Event()

    def never(step: int) -> list[tuple[str, str]]:
        stop.wait()
        return []

    write_report(tmp_path / "a.txt", "head", never, 0)
    stop.set()
    assert (tmp_path / "a.txt").read_text().endswith("did not answer in 0.1 s\n")

    def broken(step: int) -> list[tuple[str, str]]:
        raise ValueError("no such split")

    write_report(tmp_path / "b.txt", "head", broken, 0)
    assert "ValueError: no such split" in (tmp_path / "b.txt").read_text()


def test_the_innermost_call_comes_first() -> None:
    found = calls(sys._getframe())
    assert found[0].function == "test_the_innermost_call_comes_first"
    assert found[0].file == __file__
    assert os.path.exists(found[0].file)
