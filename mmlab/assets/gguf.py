"""GGUF files: their metadata, and their tensors as float32 arrays."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

Array = Float32[np.ndarray, "..."]
Bytes = UInt8[np.ndarray, " bytes"]

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""struct's letter for each type of a metadata value."""
_STRING, _ARRAY = 8, 9


class _Place(NamedTuple):
    shape: tuple[int, ...]
    kind: int
    start: int


class Gguf:
    """An opened GGUF file of version 2 or 3 (ggml's `docs/gguf.md`).

    Its tensors are decoded one by one, when asked for: all of them in float32 take seven times the file.
    """

    metadata: dict[str, Any]
    names: tuple[str, ...]
    """Of the tensors."""

    def __init__(self, data: bytes) -> None:
        self.metadata, self._places = _read_header(data)
        self.names = tuple(self._places)
        self._data = data

    def tensor(self, name: str) -> Array:
        """Decode a tensor; its shape is as torch writes it, rows first.

        Raises:
            ValueError: It is of a type other than F32, F16, Q4_1 and Q8_0.
        """
        place = self._places[name]
        if place.kind not in _TYPES:
            raise ValueError(
                f"tensor {name} is of GGML type {place.kind}; this reader knows {sorted(_TYPES)}"
            )
        kind = _TYPES[place.kind]
        raw = np.frombuffer(
            self._data, np.uint8, math.prod(place.shape) // kind.values * kind.bytes, place.start
        )
        return kind.decode(raw).reshape(place.shape)


def _read_header(data: bytes) -> tuple[dict[str, Any], dict[str, _Place]]:
    """The metadata, and where each tensor lies.

    Raises:
        ValueError: No GGUF file.
    """
    if data[:4] != b"GGUF":
        raise ValueError(f"no GGUF file: it begins with {data[:4]!r}")
    at = 4

    def take(form: str) -> Any:
        nonlocal at
        at += struct.calcsize("<" + form)
        return struct.unpack_from("<" + form, data, at - struct.calcsize("<" + form))[0]

    def string() -> str:
        nonlocal at
        length = take("Q")
        at += length
        return data[at - length : at].decode()

    def value(kind: int) -> Any:
        if kind == _STRING:
            return string()
        if kind == _ARRAY:
            kind, count = take("I"), take("Q")
            return [value(kind) for _ in range(count)]
        return take(_NUMBERS[kind])

    take("I")  # version
    tensors, values = take("Q"), take("Q")
    metadata = {}
    for _ in range(values):
        key = string()
        metadata[key] = value(take("I"))
    relative = {}
    for _ in range(tensors):
        name = string()
        dims = [take("Q") for _ in range(take("I"))]
        relative[name] = _Place(tuple(reversed(dims)), take("I"), take("Q"))
    alignment = metadata.get("general.alignment", 32)
    start = -(-at // alignment) * alignment
    return metadata, {name: place._replace(start=start + place.start) for name, place in relative.items()}


def _q4_1(raw: Bytes) -> Array:
    """Blocks of a scale, a minimum and 16 bytes: low halves are the first 16 values, high halves the rest."""
    blocks = raw.reshape(-1, 20)
    scale = blocks[:, 0:2].copy().view(np.float16).astype(np.float32)
    minimum = blocks[:, 2:4].copy().view(np.float16).astype(np.float32)
    quarters = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
    return quarters * scale + minimum


def _q8_0(raw: Bytes) -> Array:
    """Blocks of a scale and 32 signed bytes."""
    blocks = raw.reshape(-1, 34)
    scale = blocks[:, 0:2].copy().view(np.float16).astype(np.float32)
    return blocks[:, 2:].view(np.int8) * scale


class _Type(NamedTuple):
    values: int
    """In a block."""
    bytes: int
    """Of a block."""
    decode: Callable[[Bytes], Array]


_TYPES = {
    0: _Type(1, 4, lambda raw: raw.view(np.float32)),
    1: _Type(1, 2, lambda raw: raw.view(np.float16).astype(np.float32)),
    3: _Type(32, 20, _q4_1),
    8: _Type(32, 34, _q8_0),
}
"""By GGML's number of the type."""
