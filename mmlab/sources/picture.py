"""Pictures on their way into shards: of a format that is read again, and no larger than wanted."""

from __future__ import annotations

import io
import struct
import zlib
from typing import NamedTuple

from PIL import Image, ImageOps

_KEPT = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
_PHOTOS = ("JPEG", "MPO")
"""What Pillow calls JPEGs; of the several pictures in an MPO, as phones write them, the first is meant."""
_READ = (*_KEPT, "GIF", "BMP")
"""Formats: others bring readers that run programs, or are no pictures on the web."""
_QUALITY = 90
"""Of a reduced JPEG."""
_ERRORS = (
    OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, OverflowError,
    ZeroDivisionError, struct.error, zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip
"""Pillow promises no single error for a broken file."""


class Picture(NamedTuple):
    """A picture as it is written."""

    data: bytes
    extension: str
    """jpg, png or webp."""
    size: tuple[int, int]
    """Width and height as released, upright, in pixels."""


def reduce_picture(data: bytes, max_side: int | None) -> Picture:
    """Reduce a picture that is larger than wanted; the bytes of others stay as they are.

    Args:
        data: A JPEG, PNG or WebP, or the first picture of a GIF or BMP, which becomes a PNG.
        max_side: Limit of width and height in pixels; None: there is none. JPEGs are written anew with
            quality 90, others as PNG, with the transparency that they have.

    Raises:
        ValueError: It is no such picture, or broken.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_READ) as image:
            # Orientations of EXIF from 5 on exchange width and height; readers heed it in JPEGs only.
            turned = image.format in _PHOTOS and image.getexif().get(0x0112, 1) >= 5
            size = (image.height, image.width) if turned else image.size
            fits = max_side is None or max(size) <= max_side
            if fits and image.format in _KEPT:
                return Picture(data, _KEPT[image.format], size)
            scale = 1.0 if fits or max_side is None else max_side / max(size)
            return Picture(*_encode(image, scale), size)
    except _ERRORS as error:
        raise ValueError(f"broken picture ({error})") from error


def _encode(image: Image.Image, scale: float) -> tuple[bytes, str]:
    """The picture at a scale, upright, and its extension."""
    wanted = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    as_jpeg = image.format in _PHOTOS
    if as_jpeg:
        # A JPEG is decoded at a fraction of its size where that leaves twice what is wanted.
        image.draft("RGB", (2 * wanted[0], 2 * wanted[1]))
    # Pillow weighs the colours of RGBA by their opacity, so that what is hidden does not bleed in.
    plain = image.convert("RGBA" if image.has_transparency_data else "RGB")
    smaller = plain if plain.size == wanted else plain.resize(wanted, Image.Resampling.LANCZOS)
    with io.BytesIO() as file:
        if as_jpeg:
            ImageOps.exif_transpose(smaller).save(file, "JPEG", quality=_QUALITY, exif=b"")
        else:
            smaller.save(file, "PNG", exif=b"")
        return file.getvalue(), "jpg" if as_jpeg else "png"
