"""What Lightning iterates: batches of a stream, built ahead by worker processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader

from mmlab.batch import Batch
from mmlab.data.stream import Stream
from mmlab.data.text import TOKENIZERS, TextReader


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
    ) -> None:
        """Settings.

        Args:
            stream: What to load.
            steps: Batches of an epoch.
            num_workers: Processes that build batches; 0 builds them in this one.
            pin_memory: Whether to copy batches to page-locked memory ahead of the copy to a GPU.
            position: Says at the beginning of an epoch of training with which step it begins; None: with the
                one after the last that was taken.
        """
        self.stream = stream
        self.steps = steps
        self.position = position
        self._next = 0
        self._batches: Iterator[Batch] | None = None
        endless = stream.seed is not None
        self._loader: DataLoader[Batch] = DataLoader(
            stream,
            batch_size=None,
            num_workers=num_workers,
            pin_memory=pin_memory,
            # Training never restarts its workers, evaluation does with every pass.
            persistent_workers=num_workers > 0 and not endless,
            multiprocessing_context=_context(stream) if num_workers > 0 else None,
        )

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        # A generator: Lightning asks for iterators that it never uses, and those must cost nothing.
        if self.stream.seed is None:
            yield from self._loader
            return
        first = self._next if self.position is None else self.position()
        if self._batches is None or first != self._next:
            self.close()
            self._next = self.stream.start = first
            self._batches = iter(self._loader)
        for _ in range(self.steps):
            batch = next(self._batches)
            self._next += 1
            yield batch

    def close(self) -> None:
        """Stop the workers of training."""
        self._batches = None

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the position is Lightning's own count of batches. Without this method Lightning would warn
        at every resumed run that the loader cannot resume."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load."""


def _context(stream: Stream) -> multiprocessing.context.BaseContext:
    """How workers are started: forked from a server that never ran a thread.

    Forking the training process itself can hang, since the threads of OpenMP, CUDA and tokenizers do not
    survive in the child; spawning imports everything anew in every worker.
    """
    context = multiprocessing.get_context("forkserver")
    tokenizes = any(isinstance(reader, TextReader) for reader in stream.readers)
    context.set_forkserver_preload([Stream.__module__, *([TOKENIZERS] if tokenizes else [])])
    return context
