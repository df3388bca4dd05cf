"""What Weights & Biases has of a run on this disk: a file for each attempt, of which a kill may leave a part.

W&B's service is told of rows, and writes them later, in blocks; where it is killed with the run, the last
ones are lost. `wandb sync` refuses a file that ends within a record, and all that were to follow it.
"""

from __future__ import annotations

import os
import shutil
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from google.protobuf.message import DecodeError
from wandb.proto import wandb_internal_pb2

HEADER = 7
"""Bytes before the first record: a mark and a version."""
BLOCK = 32768
_CHUNK = struct.Struct("<IHB")
"""In front of each part of a record: checksum, length, and which part it is."""
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_QUIET = 2.0
"""A service that outlives its run has written all that it will after so many seconds."""


def mend_segments(folder: Path) -> int | None:
    """Cut off what is no whole record, and remove attempts of which W&B has written nothing.

    To be called where no attempt of the run is under way. What cannot be read stays as it is: a disk may be
    away for a moment, and W&B may write in another way one day.

    Args:
        folder: `wandb` of the run directory.

    Returns:
        The number of the next row; None: there is no attempt, here or any more, or none can be read.
    """
    segments = sorted(folder.glob("offline-run-*"), reverse=True)
    for segment in segments:
        path = next(segment.glob("*.wandb"), None)
        try:
            if path is None or path.stat().st_size <= HEADER:
                shutil.rmtree(segment, ignore_errors=True)
                continue
            rows = _mend(path)
        except OSError:
            return None
        if rows is None or rows > 0:
            return rows  # those before were mended when this one began
    return 0 if segments else None


def _mend(path: Path) -> int | None:
    """Leave whole records; returns the number of the next row, 0 without any, None without a run."""
    deadline = time.monotonic() + 5 * _QUIET
    while time.time() - path.stat().st_mtime < _QUIET and time.monotonic() < deadline:
        time.sleep(0.1)
    end, rows, begun = HEADER, 0, False
    with path.open("rb") as file:
        for place, content in _records(file):
            record = wandb_internal_pb2.Record()
            try:
                record.ParseFromString(content)
            except DecodeError:
                break
            end = place
            begun = begun or record.WhichOneof("record_type") == "run"
            if record.WhichOneof("record_type") == "history":
                rows = max(rows, _number(record.history) + 1)
    if not begun:
        return None
    if end < path.stat().st_size:
        os.truncate(path, end)
    return rows


def _records(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Whole records, as leveldb's log format has them, and where each ends."""
    file.seek(HEADER)
    place, parts = HEADER, b""
    while True:
        left = BLOCK - place % BLOCK
        if left < _CHUNK.size:  # zeros
            file.seek(left, os.SEEK_CUR)
            place += left
            continue
        head = file.read(_CHUNK.size)
        if len(head) < _CHUNK.size:
            return
        _, length, part = _CHUNK.unpack(head)
        content = file.read(length)
        if len(content) < length or part not in (_WHOLE, _FIRST, _MIDDLE, _LAST):
            return
        place += _CHUNK.size + length
        parts = content if part in (_WHOLE, _FIRST) else parts + content
        if part in (_WHOLE, _LAST):
            yield place, parts


def _number(history: wandb_internal_pb2.HistoryRecord) -> int:
    for item in history.item:
        if item.key == "_step" or list(item.nested_key) == ["_step"]:
            return int(item.value_json)
    return int(history.step.num)
