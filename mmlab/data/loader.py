"""What Lightning iterates: batches of a stream, built ahead by worker processes."""

from __future__ import annotations

import atexit
import multiprocessing
import signal
import weakref
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import forkserver, resource_tracker
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mmlab.batch import Batch
from mmlab.data.stream import Stream
from mmlab.data.text import TOKENIZERS, TextReader
from mmlab.data.windows import Window, stream_step

STOPPING = (signal.SIGTERM, signal.SIGUSR1)
_AHEAD = 64
"""Steps of a worker that remote shards are fetched ahead."""


class _Steps(IterableDataset[Batch]):
    """The batches of a stream from a step on.

    Worker w of W builds the steps start + w, start + w + W, ..., which is the order in which a DataLoader
    collects its workers.
    """

    def __init__(self, stream: Stream, start: int, skips: tuple[Window, ...]) -> None:
        self.stream = stream
        self.start = start
        self.skips = skips

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        step, stride = (self.start, 1) if worker is None else (self.start + worker.id, worker.num_workers)
        announced = step
        while self.stream.seed is not None or step < self.stream.order.steps:
            # Two at a time: the first batches need not wait until all of what comes ahead is known.
            for _ in range(2):
                if announced <= step + _AHEAD * stride:
                    self.stream.announce(
                        stream_step(announced, self.skips), now=stream_step(step, self.skips)
                    )
                    announced += stride
            yield self.stream.batch(stream_step(step, self.skips))
            step += stride


class Loader:
    """The batches of one epoch after the other.

    It is no DataLoader but holds one. In training the stream goes on behind the epochs: the batches that
    workers have built ahead when an epoch ends are the first of the next, so epochs begin without a wait.
    Evaluation starts anew each time.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        steps: int,
        num_workers: int = 0,
        pin_memory: bool = False,
        position: Callable[[], int] | None = None,
        skips: Sequence[Window] = (),
    ) -> None:
        """Settings.

        Args:
            stream: What to load: in training (it has a seed) without an end, in evaluation one pass.
            steps: Batches of an epoch.
            num_workers: Processes that build batches; 0 builds them in this one.
            pin_memory: Whether to copy batches to page-locked memory ahead of the copy to a GPU.
            position: Says at the beginning of an epoch of training with which step it begins; None: with the
                one after the last that was taken.
            skips: What training leaves out of the stream; looked at whenever workers start.
        """
        self.stream = stream
        self.steps = steps
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self.position = position
        self.skips = skips
        self._next = 0
        self._loader: DataLoader[Batch] | None = None
        # Under this name Lightning finds the workers to stop when a run ends or fails.
        self._iterator: Iterator[Batch] | None = None

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        # A generator: Lightning asks for iterators that it never uses, and those must cost nothing.
        if self.stream.seed is None:
            if self._iterator is None or self._loader is None:
                self._loader = self._build(start=0)
            self._begin(self._loader)
            assert self._iterator is not None
            yield from self._iterator
            return
        first = self._next if self.position is None else self.position()
        if self._iterator is None or first != self._next:
            self.close()
            self._next = first
            self._begin(self._build(start=first))
        assert self._iterator is not None
        for _ in range(self.steps):
            batch = next(self._iterator)
            self._next += 1
            yield batch

    def _build(self, *, start: int) -> DataLoader[Batch]:
        workers = self.num_workers > 0
        return DataLoader(
            _Steps(self.stream, start, tuple(self.skips)),
            batch_size=None,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            # Evaluation begins anew with each pass; training never does.
            persistent_workers=workers and self.stream.seed is None,
            multiprocessing_context=_context(self.stream) if workers else None,
        )

    def _begin(self, loader: DataLoader[Batch]) -> None:
        """Iterate, and see to it that no worker outlives this process, whatever becomes of the run."""
        iterator = iter(loader)
        if iterator is not self._iterator and hasattr(iterator, "_workers"):
            # Behind an error in the midst of a teardown nobody calls `close`. Python then waits for workers
            # that it has sent a SIGTERM, which they do not hear.
            reference = weakref.ref(iterator)
            atexit.register(lambda: _kill(reference()))
        self._iterator = iterator

    def close(self) -> None:
        """Stop the workers; iterating starts them again."""
        if getattr(self._iterator, "_workers", []):
            self._iterator._shutdown_workers()  # type: ignore[union-attr]
        _kill(self._iterator)  # what hangs
        self._iterator = None
        self._loader = None

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the position is Lightning's own count of batches. Without this method Lightning would warn
        at every resumed run that the loader cannot resume."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load."""


def _kill(iterator: Any) -> None:
    """End the workers of an iterator that are left, for they hear no SIGTERM."""
    for worker in getattr(iterator, "_workers", []):
        if worker.is_alive():
            worker.kill()


def _context(stream: Stream) -> multiprocessing.context.BaseContext:
    """How workers are started: forked from a server that never ran a thread.

    Forking the training process itself can hang, since the threads of OpenMP, CUDA and tokenizers do not
    survive in the child; spawning imports everything anew in every worker.
    """
    context = multiprocessing.get_context("forkserver")
    tokenizes = any(isinstance(reader, TextReader) for reader in stream.readers)
    context.set_forkserver_preload([__name__, *([TOKENIZERS] if tokenizes else [])])
    # Signals that tell a run to stop may come to the whole process group, and the last steps need workers:
    # they hear none of them, for what is blocked here is blocked in the server and in what it forks.
    resource_tracker.ensure_running()  # which the server would start, and which lets SIGTERM through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context
