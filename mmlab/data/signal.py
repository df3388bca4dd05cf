"""Plain arrays [steps, channels] from .npy members: touch, motion, features that others have computed."""

from __future__ import annotations

import ast
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Shaped
from torch import Tensor

from mmlab.batch import Modality
from mmlab.data.clock import Clock
from mmlab.data.decode import BrokenMember
from mmlab.data.reader import Reader, Rows, pad

_NUMBERS = re.compile(r"[<>|=]?[fiub][1248]")
_MAX_VALUES = 2**24
"""Steps x channels of one row: 64 MiB, which a batch holds as often as it has samples."""


class ArrayHeader(NamedTuple):
    """What the header of an array in numpy's format says."""

    dtype: np.dtype[Any]
    fortran: bool
    shape: tuple[int, ...]
    size: int


def read_array_header(data: bytes) -> ArrayHeader:
    """Read the header of numpy's format, versions 1 and 2 (numpy.lib.format).

    Not by numpy, whose own reader takes headers for Python source where they are broken.
    """
    width = {b"\x93NUMPY\x01\x00": 2, b"\x93NUMPY\x02\x00": 4}.get(data[:8])
    if width is None:
        raise BrokenMember("cannot decode")
    size = 8 + width + int.from_bytes(data[8 : 8 + width], "little")
    try:
        with warnings.catch_warnings():
            # Python warns of odd literals, which are refused below.
            warnings.simplefilter("ignore")
            values = ast.literal_eval(data[8 + width : min(size, 10_000)].decode("latin-1").strip())
        name, fortran, shape = values["descr"], values["fortran_order"], values["shape"]
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError):
        raise BrokenMember("cannot decode") from None
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise BrokenMember("cannot decode")
    if not isinstance(name, str) or not _NUMBERS.fullmatch(name):
        raise BrokenMember("not an array of numbers")
    try:
        return ArrayHeader(np.dtype(name), bool(fortran), shape, size)
    except TypeError:
        raise BrokenMember("not an array of numbers") from None


class SignalReader(Reader):
    """Arrays as float32 [steps, channels]."""

    modality = Modality.SIGNAL

    def __init__(
        self,
        member: str = "npy",
        *,
        channels: int,
        max_steps: int | None = None,
        modality: str | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Settings.

        Args:
            member: Extension that holds the array, [steps, channels] or [channels], in numpy's format;
                arrays of Python objects are never loaded.
            channels: Width of every step.
            max_steps: Longer signals are cut: in training to a random part, in evaluation to the beginning.
            modality: What the array stands for: features of text, sounds or pictures that others have
                computed are read in the place of these (`data.text`, ...). None: other signals.
            clock: Bring the steps, which have times of their own, to a clock. None: they stay as they are.

        Raises:
            ValueError: `max_steps` and a clock, which says how many there are.
        """
        if clock is not None and max_steps is not None:
            raise ValueError(f"max_steps={max_steps} and a clock of {clock.ticks} ticks: leave one out")
        self.clock = clock
        self.member = member
        self.channels = channels
        self.max_steps = max_steps
        if modality is not None:
            self.modality = Modality(modality)

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
        stored = self._load(members[self.member], channels=self.channels)
        spare = 0 if self.max_steps is None else max(0, len(stored) - self.max_steps)
        start = 0 if rng is None else int(rng.random() * (spare + 1))
        stored = stored[start : start + len(stored) - spare]
        if stored.size > _MAX_VALUES:
            raise BrokenMember("signal too long")
        with np.errstate(over="ignore"):
            array = np.ascontiguousarray(stored, dtype=np.float32)
        if not np.isfinite(array).all():
            raise BrokenMember("values not finite")
        if self.clock is not None:
            times = self._load(members.get(self.clock.times, b""), channels=None)
            array = self.clock.resample(array, times, self.clock.read_length(members))
        return (torch.from_numpy(array if array.flags.writeable else array.copy()),)

    def _load(self, data: bytes, *, channels: int | None) -> Shaped[np.ndarray, "steps channels"]:
        """The array as it is stored; None: of times, one or two for each step."""
        dtype, fortran, shape, start = read_array_header(data)
        if len(shape) == 1:
            shape = (1, *shape) if channels is not None else (*shape, 1)
        # numpy itself raises many errors for shapes of many, or of huge, dimensions.
        if len(shape) != 2 or shape[1] not in ((1, 2) if channels is None else (channels,)):
            raise BrokenMember(f"shape is not [steps, {channels or '1 or 2'}]")
        if shape[0] == 0:
            raise BrokenMember("empty signal")
        count = math.prod(shape)
        # A view of the bytes at hand: a header that promises more than there is allocates nothing.
        if count * dtype.itemsize > len(data) - start:
            raise BrokenMember("cannot decode")
        array = np.frombuffer(data, dtype, count=count, offset=start)
        return array.reshape(shape, order="F" if fortran else "C")

    def blank(self) -> Float32[Tensor, "1 channels"]:
        """One step of zeros."""
        return torch.zeros(1, self.channels)

    def stack(self, rows: Sequence[Tensor]) -> Rows:
        """Pad with zeros."""
        return pad(rows)
