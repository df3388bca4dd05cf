"""Pictures: against Pillow and torchvision, every odd kind of file, and what is broken."""

from __future__ import annotations

import io
import pickle
import random
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional as reference

from mmlab.data.decode import BrokenMember, decode_image, read_image_header
from mmlab.data.image import ImageReader, jitter, middle_box, random_box

SIZE = 64


def scene(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Smooth colours and some edges, no two corners alike."""
    y, x = np.mgrid[:height, :width] / max(width, height)
    planes = [255 * x, 255 * y, 127 * (1 + np.sin(9 * x) * np.cos(7 * y))]
    picture = Image.fromarray(np.stack(planes, -1).astype(np.uint8))
    picture.paste((250, 30, 20), (width // 8, height // 8, width // 3, height // 4))
    return picture.convert(mode)


def encoded(picture: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def difference(image: torch.Tensor, expected: Image.Image) -> float:
    """Mean absolute difference of pixels, of 255."""
    pixels = image.permute(1, 2, 0).numpy().astype(np.float64)
    return float(np.abs(pixels - np.asarray(expected, dtype=np.float64)).mean())


def limited(size: int, pixels: int) -> ImageReader:
    reader = ImageReader(size)
    reader.max_pixels = pixels
    return reader


def photographs(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob("coco-mini/*2017/*.jpg"))[:20]]


class TestAgainstPillow:
    def evaluated(self, data: bytes, size: int) -> Image.Image:
        picture = Image.open(io.BytesIO(data)).convert("RGB")
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        return picture.resize(
            (size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side)
        )

    def test_photographs_in_evaluation(self, public_data: Path) -> None:
        reader = ImageReader(224)
        for data in photographs(public_data):
            (image,) = reader.read({"jpg": data}, None)
            assert image.shape == (3, 224, 224)
            assert difference(image, self.evaluated(data, 224)) < 0.3

    @pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
    @pytest.mark.parametrize("shape", [(200, 131), (131, 200), (40, 40), (700, 500)])
    def test_generated_pictures_in_evaluation(self, format: str, shape: tuple[int, int]) -> None:
        data = encoded(scene(*shape), format)
        (image,) = ImageReader(SIZE).read({"jpg": data}, None)
        assert difference(image, self.evaluated(data, SIZE)) < 0.6

    def trained(self, data: bytes, seed: int, size: int) -> float:
        """Difference to Pillow's crop of the same box, moved to whole pixels of the scale decoded at."""
        picture = Image.open(io.BytesIO(data)).convert("RGB")
        box = random_box(picture.height, picture.width, (0.9, 1.0), random.Random(seed))
        image = ImageReader(size).transform(data, random.Random(seed))
        found = []
        for scale in (1, 1 / 2, 3 / 8, 1 / 4, 1 / 8):
            left, top = round(box.left * scale) / scale, round(box.top * scale) / scale
            right = min(round((box.left + box.width) * scale) / scale, picture.width)
            bottom = min(round((box.top + box.height) * scale) / scale, picture.height)
            part = picture.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, right, bottom))
            found.append(difference(image, part))
        return min(found)

    def test_photographs_in_training(self, public_data: Path) -> None:
        found = [self.trained(data, seed, 224) for seed, data in enumerate(photographs(public_data))]
        assert np.mean(found) < 2.0

    @pytest.mark.parametrize("shape", [(200, 131), (131, 200), (700, 500)])
    def test_generated_pictures_in_training(self, shape: tuple[int, int]) -> None:
        assert self.trained(encoded(scene(*shape), "JPEG", quality=95), 3, SIZE) < 2.0


class TestKindsOfFile:
    def read(self, data: bytes, **settings: object) -> np.ndarray:
        return ImageReader(32, **settings).transform(data, None).permute(1, 2, 0).numpy()  # type: ignore[arg-type]

    def test_transparency_is_laid_on_the_background(self) -> None:
        picture = Image.new("RGBA", (32, 32), (255, 0, 0, 255))
        picture.paste((0, 255, 0, 0), (0, 0, 16, 32))
        picture.paste((0, 0, 255, 128), (0, 0, 32, 4))
        pixels = self.read(encoded(picture), background=(10, 20, 200))
        assert pixels[20, 4].tolist() == [10, 20, 200]
        assert pixels[20, 28].tolist() == [255, 0, 0]
        # 128 / 255 of blue over the background.
        assert np.abs(pixels[1, 28].astype(int) - [5, 10, 228]).max() <= 1

    @pytest.mark.parametrize("format", ["PNG", "WEBP"])
    def test_half_transparency_composes_before_resizing(self, format: str) -> None:
        picture = Image.new("RGBA", (64, 64), (0, 0, 0, 0))  # black, but nobody sees it
        pixels = self.read(encoded(picture, format))
        assert (pixels == 255).all()

    def test_palettes_with_and_without_transparency(self) -> None:
        palette = scene(64, 64).quantize(32)
        assert np.abs(self.read(encoded(palette)) - self.read(encoded(palette.convert("RGB")))).max() == 0
        pixels = self.read(encoded(Image.new("P", (64, 64), 0), transparency=0))
        assert (pixels == 255).all()

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "I;16"])
    def test_grey(self, mode: str) -> None:
        ramp = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))
        picture = Image.fromarray(ramp).convert("RGB")
        if mode == "I;16":
            stored = Image.fromarray(ramp.astype(np.uint16) << 8)
        else:
            stored = picture.convert(mode)
            picture = stored.convert("RGB")
        expected = self.read(encoded(picture))
        assert np.abs(self.read(encoded(stored)).astype(int) - expected).max() <= 1

    def test_grey_and_cmyk_jpeg(self) -> None:
        grey = scene(64, 64, "L")
        assert (
            np.abs(self.read(encoded(grey, "JPEG", quality=95)).astype(int) - self.read(encoded(grey))).mean()
            < 2
        )
        stored = Image.open(io.BytesIO(encoded(scene(64, 64, "CMYK"), "JPEG", quality=95)))
        assert stored.mode == "CMYK"
        pixels = self.read(encoded(scene(64, 64, "CMYK"), "JPEG", quality=95))
        assert np.abs(pixels.astype(int) - self.read(encoded(stored.convert("RGB")))).mean() < 1

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("mode", ["RGB", "CMYK"])
    def test_orientation_of_a_jpeg(self, orientation: int, mode: str) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encoded(scene(96, 48, mode), "JPEG", exif=exif, quality=95)
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
        header = read_image_header(data)
        assert (header.width, header.height, header.orientation) == (*upright.size, orientation)
        pixels, scale = decode_image(data, header)
        assert scale == 1.0
        assert np.abs(pixels.astype(int) - np.asarray(upright)).mean() < 1
        # At a fraction of its size too.
        small, scale = decode_image(data, header, least=0.5)
        assert scale == (0.5 if mode == "RGB" else 1.0)
        assert small.shape[:2] == (upright.height * scale, upright.width * scale)

    def test_first_frame_of_an_animation(self) -> None:
        frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
        data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
        assert self.read(data)[16, 16].tolist() == [255, 0, 0]


class TestBoxes:
    @settings(max_examples=200, deadline=None)
    @given(
        st.integers(1, 3000),
        st.integers(1, 3000),
        st.floats(0.05, 1),
        st.floats(0.05, 1),
        st.integers(0, 2**32),
    )
    def test_random_boxes_lie_inside(self, height: int, width: int, a: float, b: float, seed: int) -> None:
        scale = (min(a, b), max(a, b))
        box = random_box(height, width, scale, random.Random(seed))
        assert min(box.height, box.width) >= 1
        assert 0 <= box.top <= height - box.height
        assert 0 <= box.left <= width - box.width
        if min(height, width) > 100:
            assert 0.74 < box.width / box.height < 1.35

    def test_random_boxes_are_distributed_as_torchvisions(self) -> None:
        from torchvision.transforms import RandomResizedCrop

        torch.manual_seed(0)
        picture = torch.zeros(3, 300, 400)
        theirs = np.array(
            [RandomResizedCrop.get_params(picture, [0.3, 0.8], [3 / 4, 4 / 3]) for _ in range(4000)]
        )
        rng = random.Random(0)
        ours = np.array([random_box(300, 400, (0.3, 0.8), rng) for _ in range(4000)])
        # Top, left, height, width: the mean within five standard errors, the spread within 5 %.
        error = np.sqrt(theirs.var(0) / len(theirs) + ours.var(0) / len(ours))
        assert (np.abs(theirs.mean(0) - ours.mean(0)) < 5 * error).all()
        np.testing.assert_allclose(ours.std(0), theirs.std(0), rtol=0.05)

    def test_random_boxes_fall_back_as_torchvisions(self) -> None:
        from torchvision.transforms import RandomResizedCrop

        for height, width in [(100, 400), (400, 100), (427, 640)]:
            picture = torch.zeros(3, height, width)
            expected = RandomResizedCrop.get_params(picture, [0.95, 1.0], [3 / 4, 4 / 3])
            assert tuple(random_box(height, width, (0.95, 1.0), random.Random(0))) == tuple(expected)

    @pytest.mark.parametrize(
        ("shape", "fit", "expected"),
        [
            ((10, 20), "crop", (0, 5, 10, 10)),
            ((10, 20), "pad", (-5, 0, 20, 20)),
            ((20, 10), "pad", (0, -5, 20, 20)),
        ],
    )
    def test_middle_boxes(
        self, shape: tuple[int, int], fit: Literal["crop", "pad"], expected: tuple[int, ...]
    ) -> None:
        assert middle_box(*shape, fit) == expected

    @pytest.mark.parametrize(
        ("shape", "fit", "expected"),
        [
            ((10, 20), "crop", (3, 0, 3, 20)),
            ((10, 80), "crop", (0, 10, 10, 60)),
            ((10, 80), "pad", (-2, 0, 13, 80)),
            ((10, 20), "pad", (0, -20, 10, 60)),
        ],
    )
    def test_middle_boxes_of_another_shape(
        self, shape: tuple[int, int], fit: Literal["crop", "pad"], expected: tuple[int, ...]
    ) -> None:
        assert middle_box(*shape, fit, aspect=6.0) == expected


class TestRectangle:
    def test_rows_and_columns_of_a_wide_picture_stay_as_they_are(self) -> None:
        picture = np.random.default_rng(0).integers(0, 256, (20, 60, 3), dtype=np.uint8)
        data = encoded(Image.fromarray(picture))
        reader = ImageReader((20, 60), fit="pad", crop_scale=(1.0, 1.0))
        for rng in (None, random.Random(0)):
            assert (reader.transform(data, rng).permute(1, 2, 0).numpy() == picture).all()
        assert reader.blank().shape == (3, 20, 60)

    @settings(max_examples=100, deadline=None)
    @given(st.integers(200, 3000), st.integers(200, 3000), st.floats(0.25, 4), st.integers(0, 2**32))
    def test_parts_have_about_its_shape(self, height: int, width: int, aspect: float, seed: int) -> None:
        box = random_box(height, width, (0.5, 1.0), random.Random(seed), aspect=aspect)
        assert 0 <= box.top <= height - box.height
        assert 0 <= box.left <= width - box.width
        assert 0.74 < box.width / box.height / aspect < 1.35

    def test_it_is_padded_to_its_shape(self) -> None:
        data = encoded(Image.new("RGB", (40, 40), (200, 0, 0)))
        image = ImageReader((20, 60), fit="pad", background=(0, 0, 255)).transform(data, None)
        pixels = image.permute(1, 2, 0).numpy()
        assert (pixels[:, 20:40] == [200, 0, 0]).all()
        assert (pixels[:, :20] == [0, 0, 255]).all()
        assert (pixels[:, 40:] == [0, 0, 255]).all()

    def test_it_has_a_size(self) -> None:
        with pytest.raises(ValueError, match="must be at least 1"):
            ImageReader((0, 60))


class TestPad:
    def test_the_whole_picture_is_seen_on_background(self) -> None:
        data = encoded(Image.new("RGB", (80, 40), (200, 0, 0)))
        image = ImageReader(40, fit="pad", background=(0, 0, 255)).transform(data, None)
        red = image.permute(1, 2, 0).numpy()
        assert (red[10:30] == [200, 0, 0]).all()
        assert (red[:10] == [0, 0, 255]).all()
        assert (red[30:] == [0, 0, 255]).all()

    @settings(max_examples=40, deadline=None)
    @given(st.integers(1, 200), st.integers(1, 200), st.integers(0, 1000))
    def test_any_shape_in_training(self, width: int, height: int, seed: int) -> None:
        data = encoded(Image.new("RGB", (width, height), (200, 0, 0)))
        reader = ImageReader(32, fit="pad", crop_scale=(0.2, 1.0))
        image = reader.transform(data, random.Random(seed))
        assert image.shape == (3, 32, 32)
        colours = {tuple(pixel) for pixel in image.permute(1, 2, 0).reshape(-1, 3).tolist()}
        assert colours <= {(200, 0, 0), (255, 255, 255)}

    def test_extreme_shapes_take_little_memory(self) -> None:
        data = encoded(Image.new("L", (60_000, 2), 7))
        assert ImageReader(32, fit="pad").transform(data, None).shape == (3, 32, 32)


class TestAugmentation:
    def test_is_decided_by_the_samples_own_random_numbers(self) -> None:
        data = encoded(scene(120, 90), "JPEG")
        reader = ImageReader(SIZE, crop_scale=(0.3, 1.0), flip=0.5, colour_jitter=0.4)
        first = [reader.transform(data, random.Random(seed)) for seed in range(8)]
        again = [reader.transform(data, random.Random(seed)) for seed in range(8)]
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert not torch.equal(first[0], first[1])

    def test_flip(self) -> None:
        data = encoded(scene(90, 90))
        plain = ImageReader(SIZE, crop_scale=(1.0, 1.0), fit="pad")
        always = ImageReader(SIZE, crop_scale=(1.0, 1.0), fit="pad", flip=1.0)
        rng = random.Random(0)
        rng.random = lambda: 0.5  # type: ignore[method-assign]  # the whole square, ratio 1
        assert torch.equal(always.transform(data, rng), plain.transform(data, rng).flip(-1))

    @pytest.mark.parametrize("seed", range(5))
    def test_colour_jitter_is_torchvisions(self, seed: int) -> None:
        image = torch.from_numpy(np.array(scene(40, 40))).permute(2, 0, 1)
        rng = random.Random(seed)
        brightness, contrast, saturation = (0.6 + 0.8 * rng.random() for _ in range(3))
        expected = image.float() / 255
        expected = reference.adjust_brightness(expected, brightness)
        expected = reference.adjust_contrast(expected, contrast)
        expected = reference.adjust_saturation(expected, saturation)
        ours = jitter(image, 0.4, random.Random(seed))
        assert (ours.float() - 255 * expected).abs().max() <= 0.51

    def test_jitter_of_more_than_one_stays_positive(self) -> None:
        image = torch.from_numpy(np.array(scene(20, 20))).permute(2, 0, 1)
        assert jitter(image, 3.0, random.Random(1)).dtype == torch.uint8


class TestBroken:
    @pytest.mark.parametrize(
        "data", [b"", b"\xff\xd8", b"GIF89a", b"\xff\xd8\xff\xe0" + bytes(99), bytes(999)]
    )
    def test_no_picture(self, data: bytes) -> None:
        with pytest.raises(BrokenMember, match=r"^cannot decode$"):
            ImageReader(SIZE).read({"png": data}, None)

    @pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
    def test_cut_off(self, format: str) -> None:
        data = encoded(scene(90, 90), format)
        for share in (0.1, 0.5, 0.9):
            with pytest.raises(BrokenMember, match=r"^cannot decode$"):
                ImageReader(SIZE).transform(data[: int(share * len(data))], random.Random(0))

    @pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
    def test_too_many_pixels_are_refused_before_decoding(self, format: str) -> None:
        data = encoded(scene(90, 90), format)
        with pytest.raises(BrokenMember, match=r"^too many pixels$"):
            limited(SIZE, 8099).transform(data, None)
        limited(SIZE, 8100).transform(data, None)

    def test_a_bomb(self) -> None:
        data = bytearray(encoded(Image.new("1", (8, 8))))
        data[16:24] = (30_000).to_bytes(4, "big") * 2  # 900 megapixels, says the header
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
        with pytest.raises(BrokenMember, match=r"^too many pixels$"):
            ImageReader(SIZE).transform(bytes(data), None)

    @settings(max_examples=150, deadline=None)
    @given(st.sampled_from(["JPEG", "PNG", "WEBP"]), st.randoms(use_true_random=False))
    def test_flipped_bits_give_a_picture_or_broken_member(self, format: str, rng: random.Random) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        data = bytearray(encoded(scene(40, 30), format, exif=exif))
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        try:
            image = limited(16, 10**6).transform(bytes(data), random.Random(0))
        except BrokenMember:
            return
        assert image.shape == (3, 16, 16)


@pytest.mark.parametrize("scale", [(0.0, 1.0), (0.9, 0.5), (0.5, 1.1)])
def test_crop_scales_that_are_no_shares_are_refused(scale: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="crop_scale"):
        ImageReader(crop_scale=scale)


def test_members_in_order_of_preference() -> None:
    reader = ImageReader(8, members=("webp", "png"))
    red, blue = encoded(Image.new("RGB", (8, 8), "red")), encoded(Image.new("RGB", (8, 8), "blue"))
    (image,) = reader.read({"png": blue, "webp": red, "txt": b""}, None)
    assert image[:, 0, 0].tolist() == [255, 0, 0]
    assert reader.read({"jpg": red}, None) == ()
    assert reader.finds({"png": b""})
    assert not reader.finds({"jpg": b""})


def test_rows_stack() -> None:
    reader = pickle.loads(pickle.dumps(ImageReader(16)))
    (image,) = reader.read({"png": encoded(scene(20, 20))}, None)
    data, length = reader.stack([image, reader.blank(), image])[:2]
    assert data.shape == (3, 3, 16, 16)
    assert data.dtype == torch.uint8
    assert length is None
    assert torch.equal(data[0], image)
    assert (data[1] == 255).all()
