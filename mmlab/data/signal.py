"""Other signals (touch, motion, precomputed features): plain arrays [steps, channels] from .npy members."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from mmlab.batch import Modality
from mmlab.data.decode import BrokenMember
from mmlab.data.reader import Reader, Rows, pad

_NUMBERS = re.compile(r"[<>|=]?[fiub][1248]")


class _Header(NamedTuple):
    dtype: np.dtype[Any]
    fortran: bool
    shape: tuple[int, ...]
    size: int


def _read_header(data: bytes) -> _Header:
    """Read the header of numpy's format, versions 1 and 2 (numpy.lib.format).

    Not by numpy, whose own reader takes headers for Python source where they are broken.
    """
    width = {b"\x93NUMPY\x01\x00": 2, b"\x93NUMPY\x02\x00": 4}.get(data[:8])
    if width is None:
        raise BrokenMember("cannot decode")
    size = 8 + width + int.from_bytes(data[8 : 8 + width], "little")
    try:
        values = ast.literal_eval(data[8 + width : min(size, 10_000)].decode("latin-1").strip())
        name, fortran, shape = values["descr"], values["fortran_order"], values["shape"]
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError):
        raise BrokenMember("cannot decode") from None
    if not isinstance(shape, tuple) or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise BrokenMember("cannot decode")
    if not isinstance(name, str) or not _NUMBERS.fullmatch(name):
        raise BrokenMember("not an array of numbers")
    try:
        return _Header(np.dtype(name), bool(fortran), shape, size)
    except TypeError:
        raise BrokenMember("not an array of numbers") from None


class SignalReader(Reader):
    """Arrays as float32 [steps, channels]."""

    modality = Modality.SIGNAL

    def __init__(self, member: str = "npy", *, channels: int, max_steps: int | None = None) -> None:
        """Settings.

        Args:
            member: Extension that holds the array, [steps, channels] or [channels], in numpy's format;
                arrays of Python objects are never loaded.
            channels: Width of every step.
            max_steps: Longer signals are cut: in training to a random part, in evaluation to the beginning.
        """
        self.member = member
        self.channels = channels
        self.max_steps = max_steps

    def describe(self) -> str:
        """The extension that it reads."""
        return self.member

    def finds(self, members: Mapping[str, bytes]) -> bool:
        """Whether the sample has the array."""
        return self.member in members

    def read(self, members: Mapping[str, bytes], rng: Random | None) -> tuple[Tensor, ...]:
        """The array, or nothing."""
        if self.member not in members:
            return ()
        array = self._load(members[self.member])
        spare = 0 if self.max_steps is None else max(0, len(array) - self.max_steps)
        start = 0 if rng is None else int(rng.random() * (spare + 1))
        array = array[start : start + len(array) - spare]
        if not np.isfinite(array).all():
            raise BrokenMember("values not finite")
        return (torch.from_numpy(np.ascontiguousarray(array)),)

    def _load(self, data: bytes) -> Float32[np.ndarray, "steps channels"]:
        dtype, fortran, shape, start = _read_header(data)
        count = math.prod(shape)
        # A view of the bytes at hand: a header that promises more than there is allocates nothing.
        if count * dtype.itemsize > len(data) - start:
            raise BrokenMember("cannot decode")
        array = np.frombuffer(data, dtype, count=count, offset=start)
        array = array.reshape(shape, order="F" if fortran else "C")
        array = array[None] if array.ndim == 1 else array
        if array.ndim != 2 or array.shape[1] != self.channels:
            raise BrokenMember(f"shape is not [steps, {self.channels}]")
        if len(array) == 0:
            raise BrokenMember("empty signal")
        return array.astype(np.float32)

    def blank(self) -> Float32[Tensor, "1 channels"]:
        """One step of zeros."""
        return torch.zeros(1, self.channels)

    def stack(self, rows: Sequence[Tensor]) -> Rows:
        """Pad with zeros."""
        return pad(rows)
