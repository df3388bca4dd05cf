"""Bytes of one member -> arrays, without torch; bytes that are broken raise :class:`BrokenMember`."""

from __future__ import annotations

import io
import math
import struct
import warnings
import zlib
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import numpy as np
import simplejpeg
import soundfile
import soxr
from jaxtyping import Float32, UInt8
from PIL import Image

MAX_PIXELS = 50_000_000
"""Larger pictures are refused before they are decoded."""
MAX_SECONDS = 3600.0
"""Longer sounds are refused before they are decoded."""

_MAX_SIDE = 2**16
"""Pixels along an edge. The weights that resize a line of more would take gigabytes."""
_MAX_SCANS = 50
"""Of a JPEG. Each takes as long as decoding all of its pixels, and sixty bytes; encoders write about ten."""
_FORMATS = ("JPEG", "PNG", "WEBP")
# Pillow promises no single error for a broken file; these are what its PNG, JPEG and WebP readers raise.
_PILLOW_ERRORS = (
    OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, OverflowError,
    ZeroDivisionError, struct.error, zlib.error,
)  # fmt: skip
_SAMPLING_RATES = range(1_000, 768_001)
_MAX_VALUES = 2**27
"""Steps x channels of sound decoded at once: 512 MiB."""
_UNKNOWN_SIZE = 0x7FFF_F000
"""Who writes a wav into a pipe cannot know its size: writers put this, or more, in its place."""
_MAX_CHUNKS = 1000
"""Of a wav, before its sound. Files have about five; a hostile one could have millions of empty ones."""

_T = TypeVar("_T")


class BrokenMember(ValueError):  # noqa: N818  (it is the member that is at fault, not the program)
    """A member that cannot be read; the text is a short reason, fit for counting."""


class ImageHeader(NamedTuple):
    """What is known of a picture before it is decoded."""

    height: int
    width: int
    """Both as the picture is to be seen, upright."""
    orientation: int
    """EXIF orientation of a JPEG; 1: stored upright."""
    fast: bool
    """Whether simplejpeg can decode it; the rest (CMYK, PNG, WebP) is left to Pillow."""


def read_image_header(data: bytes, *, max_pixels: int = MAX_PIXELS) -> ImageHeader:
    """Read the size of a JPEG, PNG or WebP picture.

    Raises:
        BrokenMember: `cannot decode`, `too many pixels`, `too many scans`.
    """
    orientation, fast = 1, False
    if data[:2] == b"\xff\xd8":
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError:
            raise BrokenMember("cannot decode") from None
        if _scans(data) > _MAX_SCANS:
            raise BrokenMember("too many scans")
        fast = colours in ("YCbCr", "RGB", "Gray")
        orientation = _orientation(data)
    else:
        width, height = _open(data, lambda image: image.size)
    if height * width > max_pixels or max(height, width) > _MAX_SIDE:
        raise BrokenMember("too many pixels")
    if orientation >= 5:
        height, width = width, height
    return ImageHeader(height, width, orientation, fast)


def decode_image(
    data: bytes,
    header: ImageHeader,
    *,
    least: float = 1.0,
    background: tuple[int, int, int] = (255, 255, 255),
) -> tuple[UInt8[np.ndarray, "height width 3"], float]:
    """Decode a JPEG, PNG or WebP picture to upright RGB; of an animation the first frame.

    Args:
        data: The file's bytes.
        header: What :func:`read_image_header` says of them.
        least: A JPEG may come out smaller than stored, by a factor of 1/2, 3/8, 1/4 or 1/8, but not smaller
            than by this one. Its cosine transform is then inverted at that size, which saves time.
        background: What transparent pixels are laid on.

    Returns:
        The pixels, and the factor.

    Raises:
        BrokenMember: `cannot decode`.
    """
    if not header.fast:
        pixels = _open(data, lambda image: _flatten(image, background))
        return _upright(pixels, header.orientation), 1.0
    height, width = math.ceil(header.height * least), math.ceil(header.width * least)
    if header.orientation >= 5:
        height, width = width, height
    try:
        # Factors between 1/2 and 1 take longer than decoding at full size.
        pixels = simplejpeg.decode_jpeg(data, min_height=height, min_width=width, min_factor=2)
    except ValueError:
        raise BrokenMember("cannot decode") from None
    factor = round(8 * max(pixels.shape[:2]) / max(header.height, header.width)) / 8
    return _upright(pixels, header.orientation), max(factor, 1 / 8)


def _scans(data: bytes) -> int:
    """Scans of a JPEG: 1 where its header allows one only, else at most this many."""
    components = -1
    at = 2
    while data[at : at + 1] == b"\xff":
        marker, length = data[at + 1 : at + 2], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in (b"\xc0", b"\xc1"):
            components = data[at + 9] if at + 9 < len(data) else -1
        elif marker == b"\xda" and data[at + 4 : at + 5] == bytes([max(components, 0)]):
            return 1
        elif marker < b"\xc0" or b"\xd0" <= marker <= b"\xda" or marker == b"\xff":
            break  # what stands without a length, so that what follows could pass for something else
        at += 2 + length
    return data.count(b"\xff\xda")


def _orientation(data: bytes) -> int:
    """The orientation in a JPEG's EXIF, 1 to 8; 1 where it says none."""
    start = data.find(b"Exif\0\0", 0, 4096) + 6
    order = {b"II": "<", b"MM": ">"}.get(data[start : start + 2], "")
    if start < 6 or not order:
        return 1
    try:
        (directory,) = struct.unpack_from(order + "I", data, start + 4)
        (entries,) = struct.unpack_from(order + "H", data, start + directory)
        for entry in range(min(entries, 64)):
            tag, _, _, value = struct.unpack_from(order + "HHIH", data, start + directory + 2 + 12 * entry)
            if tag == 0x0112:
                return value if 1 <= value <= 8 else 1
    except struct.error:
        return 1
    return 1


def _open(data: bytes, use: Callable[[Image.Image], _T]) -> _T:
    """Open with Pillow and use the picture; nothing but :class:`BrokenMember` escapes."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of many pixels, a refusal here, and of broken metadata, which nobody reads.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                return use(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BrokenMember("too many pixels") from None
    except _PILLOW_ERRORS:
        raise BrokenMember("cannot decode") from None


def _flatten(image: Image.Image, background: tuple[int, int, int]) -> UInt8[np.ndarray, "height width 3"]:
    """Any mode of Pillow -> RGB, transparent pixels on a background."""
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip at 255
        grey = (np.asarray(image).clip(0, 2**16 - 1) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if "A" not in image.mode and "transparency" not in image.info:
        return np.array(image.convert("RGB"))
    # By Pillow, which takes four bytes a pixel: fifty million pixels in numpy would take two gigabytes.
    pixels = image.convert("RGBA")
    laid = Image.new("RGB", pixels.size, background)
    laid.paste(pixels, mask=pixels)
    return np.array(laid)


def _upright(pixels: UInt8[np.ndarray, "h w 3"], orientation: int) -> UInt8[np.ndarray, "height width 3"]:
    """Undo the orientation of EXIF (tag 0x0112, values 1 to 8)."""
    if orientation == 1:
        return pixels
    if orientation in (2, 4, 5, 7):
        pixels = pixels[:, ::-1]
    turns = {3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}.get(orientation, 0)
    return np.ascontiguousarray(np.rot90(pixels, turns))


def decode_sound(
    data: bytes, *, sampling_rate: int, max_seconds: float | None = None, position: float = 0.0
) -> Float32[np.ndarray, " steps"]:
    """Decode a sound (wav, flac, ogg, mp3) to one channel, the mean, at a sampling rate.

    Args:
        data: The file's bytes.
        sampling_rate: In Hz.
        max_seconds: Longer sounds are cut, and only the part kept is decoded; None: all of it.
        position: Where to cut a longer sound, from 0 (keep the beginning) to 1 (keep the end).

    Returns:
        The waveform in [-1, 1], at least one step.

    Raises:
        BrokenMember: `cannot decode`, `empty sound`, `sound cut off` (of a wav), `sound too long`,
            `values not finite`.
    """
    if _is_cut_off(data):
        raise BrokenMember("sound cut off")
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            steps, rate = file.frames, file.samplerate
            if rate not in _SAMPLING_RATES:
                raise BrokenMember("cannot decode")
            kept = steps if max_seconds is None else min(steps, math.ceil(max_seconds * rate))
            if steps > MAX_SECONDS * rate or kept * file.channels > _MAX_VALUES:
                raise BrokenMember("sound too long")
            if position > 0 and steps > kept:
                file.seek(int(position * (steps - kept)))
            wave = file.read(kept, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError, TypeError):
        raise BrokenMember("cannot decode") from None
    if not np.isfinite(wave).all():
        raise BrokenMember("values not finite")
    with np.errstate(over="ignore"):
        wave = wave.mean(axis=1, dtype=np.float32)
    if rate != sampling_rate and len(wave) > 0:
        wave = soxr.resample(wave, rate, sampling_rate)
    if not np.isfinite(wave).all():  # near the largest number there is, sums become infinite
        raise BrokenMember("values not finite")
    if max_seconds is not None:
        wave = wave[: max(1, round(max_seconds * sampling_rate))]
    if len(wave) == 0:
        raise BrokenMember("empty sound")
    clipped: np.ndarray = np.clip(wave, -1.0, 1.0)
    return clipped


def _is_cut_off(data: bytes) -> bool:
    """Whether a wav ends before its sound does; libsndfile reads what is there, and says nothing."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return False
    at = 12
    for _ in range(_MAX_CHUNKS):
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8
        if name == b"data":
            return len(data) - at < size < _UNKNOWN_SIZE
        at += size + size % 2  # a chunk of odd size is followed by a byte of zeros
        if at >= len(data):
            break
    return False


def sound_seconds(data: bytes) -> float:
    """How long a sound is by its header, at most :data:`MAX_SECONDS`: longer ones are not read.

    Raises:
        BrokenMember: `cannot decode`.
    """
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            return min(MAX_SECONDS, int(file.frames) / int(file.samplerate))
    except (soundfile.SoundFileError, OSError, TypeError, ZeroDivisionError):
        raise BrokenMember("cannot decode") from None
