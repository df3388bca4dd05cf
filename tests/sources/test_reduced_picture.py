"""Pictures on their way into shards: kept byte for byte, or reduced and still what they show."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmlab.sources.picture import reduce_picture


def gradient(width: int, height: int) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 128 + 0 * x], -1).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **settings: object) -> bytes:
    with io.BytesIO() as file:
        image.save(file, kind, **settings)
        return file.getvalue()


@pytest.mark.parametrize(("kind", "extension"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")])
def test_small_pictures_keep_their_bytes(kind: str, extension: str) -> None:
    data = encoded(gradient(40, 20), kind)
    assert reduce_picture(data, 40) == (data, extension, (40, 20))
    assert reduce_picture(data, None).data == data


@pytest.mark.parametrize(("kind", "extension"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "png")])
def test_large_pictures_are_reduced(kind: str, extension: str) -> None:
    data = encoded(gradient(600, 300), kind)
    smaller = reduce_picture(data, 100)
    assert (smaller.extension, smaller.size) == (extension, (600, 300))
    with Image.open(io.BytesIO(smaller.data)) as image:
        assert image.size == (100, 50)
        pixels = np.asarray(image.convert("RGB"), dtype=float)
    reference = np.asarray(gradient(600, 300).resize((100, 50), Image.Resampling.BOX), dtype=float)
    assert np.abs(pixels - reference).mean() < 2


def test_transparency_stays() -> None:
    image = gradient(60, 60).convert("RGBA")
    image.putalpha(Image.fromarray(np.repeat(np.uint8([[0, 255]]), 30, axis=1).repeat(60, axis=0)))
    with Image.open(io.BytesIO(reduce_picture(encoded(image, "PNG"), 20).data)) as smaller:
        assert smaller.mode == "RGBA"
        alpha = np.asarray(smaller)[..., 3]
    assert (alpha[:, :8] < 10).all()
    assert (alpha[:, 12:] > 245).all()


def test_a_jpeg_that_lies_on_its_side_is_written_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter to the right
    data = encoded(gradient(60, 30), "JPEG", exif=exif)
    smaller = reduce_picture(data, 20)
    assert smaller.size == (30, 60)
    with Image.open(io.BytesIO(smaller.data)) as image:
        assert image.size == (10, 20)
        assert image.getexif().get(0x0112, 1) == 1
        pixels = np.asarray(image, dtype=int)
    # The left edge, without red, is on top now; the upper edge, without green, on the right.
    assert pixels[0, :, 0].max() < 40
    assert pixels[-1, :, 0].min() > 215
    assert pixels[:, -1, 1].max() < 60
    assert pixels[:, 0, 1].min() > 195


def test_a_jpeg_of_several_pictures_is_its_first(tmp_path: Path) -> None:
    """As phones write them."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "several.jpg"
    gradient(60, 30).save(path, "MPO", save_all=True, append_images=[gradient(30, 60)], exif=exif)
    for side in (None, 20):
        picture = reduce_picture(path.read_bytes(), side)
        assert (picture.extension, picture.size) == ("jpg", (30, 60))
        with Image.open(io.BytesIO(picture.data)) as image:
            assert (image.format, image.size) == ("JPEG", (30, 60) if side is None else (10, 20))


@pytest.mark.parametrize("kind", ["GIF", "BMP"])
def test_other_formats_become_png(kind: str) -> None:
    picture = reduce_picture(encoded(gradient(16, 8), kind), None)
    assert (picture.extension, picture.size) == ("png", (16, 8))
    with Image.open(io.BytesIO(picture.data)) as image:
        assert image.format == "PNG"
    assert reduce_picture(encoded(gradient(1000, 8), kind), 10).size == (1000, 8)


def test_grey_and_cmyk_jpegs() -> None:
    for mode in ("L", "CMYK"):
        data = encoded(gradient(64, 64).convert(mode), "JPEG")
        with Image.open(io.BytesIO(reduce_picture(data, 32).data)) as image:
            assert (image.size, image.format) == ((32, 32), "JPEG")


def test_broken_pictures() -> None:
    whole = encoded(gradient(600, 300), "JPEG")
    for data in (b"", b"%!PS-Adobe", b"not a picture", whole[:3000]):
        with pytest.raises(ValueError, match="broken picture"):
            reduce_picture(data, 100)
    huge = bytearray(encoded(Image.new("1", (8, 8)), "PNG"))
    huge[16:24] = (60_000).to_bytes(4, "big") * 2
    with pytest.raises(ValueError, match="broken picture"):
        reduce_picture(bytes(huge), 100)
