"""Other signals (touch, motion, precomputed features): plain arrays [steps, channels] from .npy members."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from random import Random

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from mmlab.batch import Modality
from mmlab.data.decode import BrokenMember
from mmlab.data.reader import Reader, Rows, pad

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


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
        file = io.BytesIO(data)
        try:
            read_header = _HEADERS[np.lib.format.read_magic(file)]
            shape, fortran, dtype = read_header(file)
        except (ValueError, KeyError, TypeError, SyntaxError, MemoryError, RecursionError):
            raise BrokenMember("cannot decode") from None
        if dtype.kind not in "fiub":
            raise BrokenMember("not an array of numbers")
        # A view of the bytes at hand: a header that promises more than there is allocates nothing.
        if math.prod(shape) * dtype.itemsize > len(data) - file.tell() or min(shape, default=1) < 0:
            raise BrokenMember("cannot decode")
        array = np.frombuffer(data, dtype, count=math.prod(shape), offset=file.tell())
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
        return pad(rows, 0.0)
