"""What a rank that hangs knows about itself: where its threads are, what it waits for, what it reads.

Nothing here needs another rank, and nothing takes a lock that the main thread may hold. Files that may lie
on a server that does not answer are read last, in a thread of their own that nobody waits long for.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import torch
import torch.distributed as dist

Samples = Callable[[int], list[tuple[str, str]]]
"""Shard and key of each sample that this rank reads at a step."""
READING = 5.0
"""Seconds after which the names of samples are given up."""
_TORCH = f"{os.sep}torch{os.sep}"
_COLLECTIVES = (f"{os.sep}torch{os.sep}distributed{os.sep}", f"{os.sep}parallel{os.sep}distributed.py")
"""Code that speaks with other ranks: torch.distributed, and what DDP does before and after a step."""
_BETWEEN = (_TORCH, f"{os.sep}lightning{os.sep}")
"""Code between a collective and who wanted it."""
_BACKWARD = "_engine_run_backward"


class Call(NamedTuple):
    """A line of code that is being run."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.function} ({self.file}:{self.line})"


def calls(frame: FrameType | None) -> list[Call]:
    """What a thread is in, the innermost first."""
    found = []
    while frame is not None:
        found.append(Call(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
        frame = frame.f_back
    return found


def main_calls() -> list[Call]:
    """What the main thread is in."""
    return calls(sys._current_frames().get(threading.main_thread().ident or 0))


def waits_in(stack: list[Call]) -> str:
    """In a few words, what a thread waits in: a collective and who called it, the backward pass, a function.

    Args:
        stack: Its calls, the innermost first.
    """
    collective = None
    for call in stack:
        if any(part in call.file for part in _COLLECTIVES):
            if collective is None and call.function != "wrapper":  # that one logs the calls of collectives
                collective = call.function
        elif collective is not None and not any(part in call.file for part in _BETWEEN):
            return f"waits in the collective {collective}, called by {call}"
    if collective is not None:
        return f"waits in the collective {collective}"
    if any(call.function == _BACKWARD for call in stack[:2]):
        shares = dist.is_available() and dist.is_initialized()
        own = (call for call in stack if not any(part in call.file for part in _BETWEEN))
        where = next(own, stack[0])
        what = ", in which ranks exchange gradients" if shares else ""
        return f"is in the backward pass{what}, called by {where}"
    return f"is in {stack[0]}" if stack else "has ended"


def write_report(path: Path, head: str, samples: Samples | None, step: int) -> None:
    """Write all that is known; what is surest comes first, and stays if the rest cannot be learned.

    Args:
        path: The file; a file beside it takes what NCCL recorded.
        head: What the rank was doing.
        samples: Names the samples of a step of training or of a pass; None: nobody knows.
        step: Where the rank is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        parts: list[Callable[[], str]] = [lambda: head, _memory, _stacks, _workers, lambda: _recorded(path)]
        for part in parts:
            try:
                text = part()
            except Exception:  # a report that lacks a part is better than none
                text = f"could not be learned:\n{traceback.format_exc()}"
            file.write(f"{text.rstrip()}\n\n" if text else "")
            file.flush()
        if samples is not None:
            file.write(_within(READING, lambda: _samples(samples, step)))


def _memory() -> str:
    wanted = ("VmRSS", "VmHWM", "VmSwap")
    lines = [line.split() for line in _lines(Path("/proc/self/status")) if line.startswith(wanted)]
    text = "memory: " + ", ".join(f"{name} {int(kb) / 1e6:.2f} GB" for name, kb, _ in lines)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        text += f"; of the GPU {torch.cuda.memory_allocated() / 1e9:.2f} GB in tensors"
    return text


def _stacks() -> str:
    """What each thread is in; no source is read, which may lie on a server that does not answer."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    main, own = threading.main_thread().ident, threading.get_ident()
    frames = sorted(sys._current_frames().items(), key=lambda item: item[0] != main)
    blocks = []
    for ident, frame in frames:
        if ident != own:
            lines = [f"  {call.file}:{call.line} in {call.function}" for call in calls(frame)]
            blocks.append("\n".join([f"thread {names.get(ident, ident)}, innermost call first:", *lines]))
    return "\n\n".join(blocks)


def _workers() -> str:
    """State of the loader's processes, what they wait for in the system, which files they have open."""
    return "\n".join(line for child in multiprocessing.active_children() for line in _worker(child.pid or 0))


def _worker(pid: int) -> Iterator[str]:
    folder = Path(f"/proc/{pid}")
    state = next((line.split("\t")[1] for line in _lines(folder / "status") if line.startswith("State")), "?")
    waits = " ".join(_lines(folder / "wchan")) or "?"
    yield f"loader worker {pid}: {state}, waits in {waits}, open files:"
    try:
        links = [os.readlink(link) for link in (folder / "fd").iterdir()]
    except OSError as error:
        links = [f"/ ({error})"]
    special = ("/dev/", "/memfd:", "/proc/")
    yield from sorted(
        {f"  {link}" for link in links if link.startswith("/") and not link.startswith(special)}
    )
    yield from (f"  in the system: {line}" for line in _lines(folder / "stack"))


def _lines(path: Path) -> list[str]:
    """Of a file of /proc; none where it may not be read."""
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _recorded(path: Path) -> str:
    """Keep what NCCL's flight recorder has, as JSON; it asks no other rank."""
    if not dist.is_initialized() or "nccl" not in str(dist.get_backend()):
        return ""
    dump = getattr(torch._C._distributed_c10d, "_dump_nccl_trace_json", None)
    if dump is None:
        return ""
    beside = path.with_suffix(".nccl.json")
    recorded = dump()
    beside.write_bytes(recorded if isinstance(recorded, bytes) else str(recorded).encode())
    return f"collectives of NCCL: {beside}"


def _samples(samples: Samples, step: int) -> str:
    lines = []
    for number, what in ((step, "this step"), (step + 1, "the next step")):
        lines.append(f"samples of this rank at {what}, {number}:")
        lines += [f"  {shard}: {key}" for shard, key in samples(number)]
    return "\n".join(lines) + "\n"


def _within(seconds: float, answer: Callable[[], str]) -> str:
    """An answer that is waited for so long."""
    said: list[str] = []

    def ask() -> None:
        try:
            said.append(answer())
        except Exception:
            said.append(f"samples: could not be learned:\n{traceback.format_exc()}")

    thread = threading.Thread(target=ask, name="samples of a hang", daemon=True)
    thread.start()
    thread.join(seconds)
    return said[0] if said else f"samples: the index of the shards did not answer in {seconds:g} s\n"


def listing(keys: tuple[str, ...]) -> str:
    """Keys of a batch, in a line."""
    return ", ".join(key for key in keys if key) or "none"
