"""Members that want to do harm: pictures, sounds, arrays and texts that are more, or other, than they say."""

from __future__ import annotations

import io
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
from hostile import array, image, sound
from PIL import Image

TOO_MANY, UNREADABLE = "image: too many pixels", "image: cannot decode"
TOO_LONG = "audio: sound too long"
NO_ARRAY, NO_NUMBERS = "signal: cannot decode", "signal: not an array of numbers"
SHAPE = "signal: shape is not [steps, 3]"


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int, height: int, *extra: bytes, colour: int = 2, depth: int = 8, rows: int | None = None
) -> bytes:
    """A black picture; `rows` says how many are there."""
    channels = {0: 1, 2: 3, 6: 4}[colour]
    line = bytes(1 + width * channels * depth // 8) if width < 2**20 else b""
    pack = zlib.compressobj(9)
    packed = b"".join(pack.compress(line) for _ in range(height if rows is None else rows)) + pack.flush()
    start = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = b"".join(extra) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + start + body


def jpeg_of_scans(side: int, scans: int) -> bytes:
    """A progressive JPEG whose last scan, of some bytes, comes again and again."""
    buffer = io.BytesIO()
    Image.new("L", (side, side), 128).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    return data[:-2] + data[data.rfind(b"\xff\xda") : -2] * scans + data[-2:]


def jpeg_that_says(width: int, height: int) -> bytes:
    data = image("JPEG")
    at = data.find(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def webp_canvas(side: int) -> bytes:
    """An animation that asks for a canvas."""
    size = (side - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<IB3x", 10, 2) + size + size + b"ANIM" + struct.pack("<IIH", 6, 0, 0)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def other_format(format: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, format)
    return buffer.getvalue()


def wav(channels: int, rate: int, bits: int, data: bytes, says: int | None = None) -> bytes:
    size = len(data) if says is None else says
    block = channels * bits // 8
    form = struct.pack("<HHIIHH", 1, channels % 65536, rate, rate * block % 2**32, block % 65536, bits)
    head = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", size)
    return b"RIFF" + struct.pack("<I", (len(head) + size) % 2**32) + head + data


def flac_that_says(steps: int) -> bytes:
    """Its STREAMINFO counts the steps in 36 bits."""
    data = bytearray(sound("flac"))
    data[21] = data[21] & 0xF0 | steps >> 32
    data[22:26] = (steps & 2**32 - 1).to_bytes(4, "big")
    return bytes(data)


def npy(descr: str, shape: str, data: bytes = b"", *, fortran: str = "False", more: str = "") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, {more}}}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


class Harm:
    """Unpickling this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.path,)


def pickled(path: Path) -> dict[str, bytes]:
    """Arrays as numpy pickles them, and pickles under every name that somebody may unpickle."""
    value = np.array([[Harm(path), 1, 2]], dtype=object)
    plain = pickle.dumps(Harm(path))
    names = ("jpg", "txt", "json", "wav", "npy", "pkl", "pickle", "pyd", "pth", "pt", "npz", "cls")
    return {"npy": array(value)} | {name: plain for name in names if name != "npy"}


SMALL: dict[str, tuple[str, bytes, str]] = {
    "100 megapixels": ("c.png", png(10_000, 10_000, rows=1), TOO_MANY),
    "2**31 - 1 pixels wide": ("c.png", png(2**31 - 1, 1, rows=1), TOO_MANY),
    # The weights that resize such a line take 1.6 GB.
    "a line of a million pixels": ("c.png", png(1_000_000, 1), TOO_MANY),
    "no pixels": ("c.png", png(0, 0), UNREADABLE),
    # Pillow takes a stream that ends early, but well, for a picture with black rows.
    "a png that says more than it has": ("c.png", png(3000, 3000, rows=1), ""),
    "a png that has more than it says": ("c.png", png(16, 1, rows=100_000), ""),
    "a profile of a gigabyte": (
        "c.png", png(8, 8, chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(2**26)))), UNREADABLE,
    ),
    "a comment of a gigabyte": (
        "c.png", png(8, 8, *[chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**22)))] * 20), UNREADABLE,
    ),
    "ten thousand chunks": ("c.png", png(8, 8, chunk(b"aaAa", b"") * 10_000), ""),
    # Each scan takes as long as all pixels: a megabyte of them decoded for half an hour.
    "a jpeg of 1000 scans": ("c.jpg", jpeg_of_scans(500, 1000), "image: too many scans"),
    "a jpeg that says 65500 squared": ("c.jpg", jpeg_that_says(65_500, 65_500), TOO_MANY),
    "a jpeg that says more than it has": ("c.jpg", jpeg_that_says(900, 900), UNREADABLE),
    "a canvas of 16383 squared": ("c.webp", webp_canvas(16_383), TOO_MANY),
    "a gif called jpg": ("c.jpg", other_format("GIF"), UNREADABLE),
    "postscript called png": ("c.png", other_format("EPS"), UNREADABLE),
    "a wav that says gigabytes": ("c.wav", wav(1, 16_000, 16, bytes(320), says=2**32 - 10), ""),
    "a wav of 65535 channels": ("c.wav", wav(65_535, 8000, 8, bytes(65_535)), "audio: cannot decode"),
    "a wav of rate 0": ("c.wav", wav(1, 0, 16, bytes(320)), "audio: cannot decode"),
    "a wav of rate 2**31": ("c.wav", wav(1, 2**31, 16, bytes(320)), "audio: cannot decode"),
    "a flac that says ten hours": ("c.flac", flac_that_says(36_000 * 16_000), "audio: sound too long"),
    "a flac that says 2**36 - 1 steps": ("c.flac", flac_that_says(2**36 - 1), "audio: sound too long"),
    # The mean of two channels is infinite, and resampled not a number at all.
    "a sound near infinity": (
        "c.wav", sound("wav", np.full((900, 2), 3e38), 22_050, "FLOAT"), "audio: values not finite",
    ),
    "not a number in the middle": (
        "c.wav", sound("wav", np.r_[np.zeros(99), np.nan, np.zeros(99)], subtype="FLOAT"),
        "audio: values not finite",
    ),
    # numpy's own errors, of three kinds: ValueError, OverflowError, MemoryError.
    "an array of 100 dimensions": ("c.npy", npy("'<f4'", str((1,) * 100), bytes(4)), SHAPE),
    "an array of 0 x 10**30": ("c.npy", npy("'<f4'", f"(0, {10**30})"), SHAPE),
    "an array of 10**30 x 3": ("c.npy", npy("'<f4'", f"({10**30}, 3)"), NO_ARRAY),
    "an array of 0 x 3": ("c.npy", npy("'<f4'", "(0, 3)"), "signal: empty signal"),
    "an array of -1 x 3": ("c.npy", npy("'<f4'", "(-1, 3)", bytes(12)), NO_ARRAY),
    "an array of 2.0 x 3": ("c.npy", npy("'<f4'", "(2.0, 3)", bytes(24)), NO_ARRAY),
    "an array of True x 3": ("c.npy", npy("'<f4'", "(True, 3)", bytes(12)), NO_ARRAY),
    "a shape that is a list": ("c.npy", npy("'<f4'", "[1, 3]", bytes(12)), NO_ARRAY),
    "fields": ("c.npy", npy("[('a', '<f4'), ('b', '|O')]", "(1, 3)", bytes(36)), NO_NUMBERS),
    "objects": ("c.npy", npy("'|O'", "(1, 3)", bytes(24)), NO_NUMBERS),
    "dates": ("c.npy", npy("'<M8[ns]'", "(1, 3)", bytes(24)), NO_NUMBERS),
    "a call": ("c.npy", npy("__import__('os').getcwd()", "(1, 3)"), NO_ARRAY),
    "a power": ("c.npy", npy("'<f4'", "(9**9**9, 3)"), NO_ARRAY),
    "a string times much": ("c.npy", npy("'<f4' * 10**9", "(1, 3)"), NO_ARRAY),
    "a comprehension": ("c.npy", npy("'<f4'", "tuple(i for i in (1, 3))"), NO_ARRAY),
    "deep literals": ("c.npy", npy("-" * 9000 + "1", "(1, 3)"), NO_ARRAY),
    "an escape that is none": ("c.npy", npy(r"'\d'", "(1, 3)"), NO_NUMBERS),
    "no dictionary": ("c.npy", b"\x93NUMPY\x01\x00\x03\x00[1]", NO_ARRAY),
    "a header longer than the file": ("c.npy", b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}", NO_ARRAY),
    "numbers above float32": ("c.npy", array(np.full((2, 3), 1e300)), "signal: values not finite"),
    "fortran order": ("c.npy", npy("'>i2'", "(2, 3)", bytes(12), fortran="True"), ""),
    "booleans that are neither": ("c.npy", npy("'|b1'", "(2, 3)", b"\x02\x80\xff\0\1\7"), ""),
    "deep json": ("c.json", b'{"caption":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "text: invalid JSON"),
    "an integer of a megabyte": ("c.json", b'{"caption": ' + b"9" * 10**6 + b"}", "text: invalid JSON"),
    "numbers that json has not": (
        "c.json", b'{"caption": [NaN, Infinity, -Infinity, 1e999]}', "text: caption is not a string",
    ),
    # Tokenizers take no halves of surrogate pairs: TypeError.
    "half a surrogate pair": ("c.json", b'{"caption": "\\ud800 x"}', ""),
    "a caption of nulls": ("c.txt", bytes(1000), ""),
    "ten thousand captions": (
        "c.json", b'{"captions": [' + b'"x",' * 9999 + b'"x"]}', "text: too many captions",
    ),
    "text of odd bytes": ("c.txt", b"caf\xe9", "text: invalid UTF-8"),
    "text of surrogates": ("c.txt", b"\xed\xa0\x80", "text: invalid UTF-8"),
    "text of one word": ("c.txt", b"x" * 10**6, ""),
    "text of combining marks": ("c.txt", "e\u0301".encode() * 10**5, ""),
}  # fmt: skip
"""By name: the member, and why it is skipped; empty: it is read after all."""


def silence(format: str, *, hours: int, rate: int) -> bytes:
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", samplerate=rate, channels=1, format=format) as file:
        for _ in range(hours * 60):
            file.write(np.zeros(60 * rate, dtype=np.int16))
    return buffer.getvalue()


def large() -> dict[str, tuple[str, bytes, str]]:
    """What would take gigabytes, or minutes, where no limit stopped it; takes seconds to make."""
    return {
        "50 megapixels, transparent": ("c.png", png(7000, 7000, colour=6), ""),
        "50 megapixels of 16 bits": ("c.png", png(7000, 7000, colour=0, depth=16), ""),
        "100 megapixels, all there": ("c.png", png(10_000, 10_000), TOO_MANY),
        "36 megapixels of 36 scans": ("c.jpg", jpeg_of_scans(6000, 30), UNREADABLE),
        "10 hours of silence, flac": ("c.flac", silence("flac", hours=10, rate=1000), TOO_LONG),
        "hours that say ten seconds": ("c.mp3", sound("mp3", np.zeros(80_000), 8000) * 3600, ""),
        "an hour of silence": ("c.flac", silence("flac", hours=1, rate=8000), ""),
        "64 megabytes of bytes as a signal": ("c.npy", array(np.zeros((2**21, 3), np.uint8)), ""),
        "too long a signal": ("c.npy", array(np.zeros((2**23, 3), np.uint8)), "signal: signal too long"),
        "json of empty arrays": ("c.json", b"[" + b"[]," * 3_000_000 + b"0]", ""),
        "too much json": ("c.json", b"[" + b"[]," * 6_000_000 + b"0]", "text: text above 16 MiB"),
        "15 MB of text": ("c.txt", b"a dog " * 2_500_000, ""),
        "100 MB of text": ("c.txt", b"a dog " * 17_000_000, "text: text above 16 MiB"),
    }  # fmt: skip
