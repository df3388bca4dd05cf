"""What a public data set is to the data module: a folder of shards, made when it is missing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path


class Source(ABC):
    """Turns the released files of a data set into shards."""

    name: str
    """As in `mmlab data prepare NAME`."""

    @abstractmethod
    def prepare(self) -> Path:
        """Write `train-*.tar`, `val-*.tar` and `test-*.tar`, unless they are there; returns their folder.

        Called in one process of a node, before training, and by every process afterwards, when the shards
        are there: it then only finds the folder.
        """
