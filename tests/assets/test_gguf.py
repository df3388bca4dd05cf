"""GGUF files, written here value by value, read by the package."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest

from mmlab.assets.convert_smollm2 import half_split
from mmlab.assets.gguf import Gguf

F32, F16, Q4_1, Q8_0, Q6_K = 0, 1, 3, 8, 14


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def gguf(metadata: dict[str, bytes], tensors: dict[str, tuple[tuple[int, ...], int, bytes]]) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, value in metadata.items():
        head += string(key) + value
    body = b""
    for name, (shape, kind, content) in tensors.items():
        body += bytes(-len(body) % 64)
        dims = struct.pack(f"<{len(shape)}Q", *reversed(shape))
        head += string(name) + struct.pack("<I", len(shape)) + dims + struct.pack("<IQ", kind, len(body))
        body += content
    return head + bytes(-len(head) % 64) + body


ALIGNMENT = {"general.alignment": struct.pack("<II", 4, 64)}


def test_metadata() -> None:
    values: dict[str, Any] = {
        "a": (struct.pack("<Ii", 5, -7), -7),
        "b": (struct.pack("<If", 6, 0.5), 0.5),
        "c": (struct.pack("<I", 8) + string("é"), "é"),
        "d": (struct.pack("<I?", 7, True), True),
        "e": (struct.pack("<IIQ", 9, 8, 2) + string("x") + string(""), ["x", ""]),
    }
    read = Gguf(gguf({key: stored for key, (stored, _) in values.items()}, {}))
    assert read.metadata == {key: value for key, (_, value) in values.items()}
    assert read.names == ()


def test_plain_tensors() -> None:
    one = np.arange(6, dtype=np.float32).reshape(2, 3)
    two = np.array([0.1, -2.5], dtype=np.float16)
    read = Gguf(gguf(ALIGNMENT, {"one": ((2, 3), F32, one.tobytes()), "two": ((2,), F16, two.tobytes())}))
    np.testing.assert_array_equal(read.tensor("one"), one)
    np.testing.assert_array_equal(read.tensor("two"), two.astype(np.float32))


def test_quantized_tensors() -> None:
    """Against ggml's definition, value by value in double precision."""
    rng = np.random.default_rng(0)
    blocks = 6
    scales = rng.normal(size=(blocks, 2)).astype(np.float16)
    quarters = rng.integers(0, 256, (blocks, 16), dtype=np.uint8)
    signed = rng.integers(-128, 128, (blocks, 32)).astype(np.int8)
    four, eight = np.empty((blocks, 32)), np.empty((blocks, 32))
    for block in range(blocks):
        for place in range(16):
            low, high = int(quarters[block, place]) % 16, int(quarters[block, place]) // 16
            four[block, place] = float(scales[block, 0]) * low + float(scales[block, 1])
            four[block, place + 16] = float(scales[block, 0]) * high + float(scales[block, 1])
        for place in range(32):
            eight[block, place] = float(scales[block, 0]) * int(signed[block, place])
    q4 = b"".join(s.tobytes() + q.tobytes() for s, q in zip(scales, quarters, strict=True))
    q8 = b"".join(s[:1].tobytes() + q.tobytes() for s, q in zip(scales, signed, strict=True))
    read = Gguf(gguf(ALIGNMENT, {"q4": ((3, 64), Q4_1, q4), "q8": ((2, 96), Q8_0, q8)}))
    np.testing.assert_allclose(read.tensor("q4"), four.reshape(3, 64), rtol=1e-6)
    np.testing.assert_allclose(read.tensor("q8"), eight.reshape(2, 96), rtol=1e-6)


def test_other_types_are_refused() -> None:
    read = Gguf(gguf(ALIGNMENT, {"x": ((256,), Q6_K, bytes(210))}))
    with pytest.raises(ValueError, match="tensor x is of GGML type 14"):
        read.tensor("x")


def test_other_files_are_refused() -> None:
    with pytest.raises(ValueError, match="no GGUF file"):
        Gguf(b"PK\x03\x04 and more")


def test_rows_rotated_in_pairs_become_rows_rotated_in_halves() -> None:
    rng = np.random.default_rng(1)
    heads, dim = 2, 6
    halves = rng.normal(size=(heads * dim, 5)).astype(np.float32)
    # llama.cpp's order: row 2 i of a head is its i-th row of the first half, row 2 i + 1 of the second
    pairs = np.empty_like(halves)
    for head in range(heads):
        for i in range(dim // 2):
            pairs[head * dim + 2 * i] = halves[head * dim + i]
            pairs[head * dim + 2 * i + 1] = halves[head * dim + dim // 2 + i]
    np.testing.assert_array_equal(half_split(pairs, heads), halves)
