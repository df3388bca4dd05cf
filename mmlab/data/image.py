"""Pictures -> uint8 tensors: decoding, the crop, the flip, colour jitter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from random import Random
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import default_collate

from mmlab.batch import Modality
from mmlab.data.decode import MAX_PIXELS, decode_image, read_image_header
from mmlab.data.pattern import matching
from mmlab.data.reader import Reader, Rows

_RATIO = (3 / 4, 4 / 3)
"""Bounds of width / height of a random crop beside that of the result, as in torchvision's
RandomResizedCrop."""
_LOG_RATIO = (math.log(_RATIO[0]), math.log(_RATIO[1]))
_HALF = 0.5 / 0.95
"""Up to this many pixels wanted for one stored, along an edge, half of the stored ones will do: decoding half
saves time, and 427, the height of most landscape photographs of COCO, would just miss 2 x 224."""
_FORMATS = ("jpg", "jpeg", "png", "webp")
_MEMBERS = (*_FORMATS, *(f"[0-9]*.{extension}" for extension in _FORMATS))
_LUMA = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in a grey value (ITU-R BT.601), as torchvision's adjust_* use them."""


class Box(NamedTuple):
    """A part of a picture, in pixels; may reach beyond its edges, which are then background."""

    top: int
    left: int
    height: int
    width: int


def random_box(
    height: int, width: int, scale: tuple[float, float], rng: Random, *, aspect: float = 1.0
) -> Box:
    """Part of a picture for training: its share of the area is uniform in `scale`, its ratio log-uniform.

    As torchvision's RandomResizedCrop (Szegedy et al. 2015, section 6): ten tries, then the largest part
    from the middle whose ratio is allowed. `aspect` is width / height of what the part is resized to.
    """
    w = min(width, max(1, round(height * aspect * _RATIO[1])))
    h = min(height, max(1, round(width / (aspect * _RATIO[0]))))
    largest = Box((height - h) // 2, (width - w) // 2, h, w)
    tries = 10 if h * w >= scale[0] * height * width else 0
    for _ in range(tries):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * rng.random())
        ratio = math.exp(_LOG_RATIO[0] + (_LOG_RATIO[1] - _LOG_RATIO[0]) * rng.random()) * aspect
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(rng.random() * (height - h + 1)), int(rng.random() * (width - w + 1)), h, w)
    return largest


def _span(first: float, length: float, available: int, size: int) -> tuple[int, int, int, int]:
    """Along one edge: the pixels of a box that exist, and where they land among `size`; each at least one."""
    start, stop = max(0, round(first)), min(available, round(first + length))
    start = min(start, available - 1)
    stop = max(stop, start + 1)
    low = round((start - first) / length * size)
    high = round((stop - first) / length * size)
    low = min(max(low, 0), size - 1)
    return start, stop, low, min(max(high, low + 1), size)


def middle_box(height: int, width: int, fit: str, *, aspect: float = 1.0) -> Box:
    """What has a ratio of width to height, in the middle of a picture.

    The largest inside the picture (`crop`), or the smallest around it (`pad`).
    """
    if (width > height * aspect) == (fit == "crop"):
        h, w = height, max(1, round(height * aspect))
    else:
        h, w = max(1, round(width / aspect)), width
    return Box((height - h) // 2, (width - w) // 2, h, w)


class ImageReader(Reader):
    """Pictures as uint8 [3, height, width], RGB; the encoder normalises them on the device."""

    modality = Modality.IMAGE

    def __init__(
        self,
        size: int | tuple[int, int] = 224,
        *,
        members: Sequence[str] = _MEMBERS,
        every: bool = False,
        fit: Literal["crop", "pad", "stretch"] = "crop",
        background: tuple[int, int, int] = (255, 255, 255),
        crop_scale: tuple[float, float] = (0.9, 1.0),
        flip: float = 0.0,
        colour_jitter: float = 0.0,
    ) -> None:
        """Settings.

        Args:
            size: Side of the result in pixels, or its height and width.
            members: Extensions that hold pictures, in order of preference; `*` and `?` match as in file names
                (`*.jpg` matches `left.jpg` and `right.jpg`), `[0-9]*.jpg` one that begins with a digit.
                Numbered ones (`0.jpg`, `1.png`) come last, by their numbers. The first that a sample has is
                read.
            every: Read all pictures of a sample, as several rows in that order, in training and evaluation.
            fit: What of a picture of another shape is seen: `crop`: in evaluation the largest part of the
                wanted shape in its middle, in training a random part; `pad`: all of it, on a background of
                that shape, of which training takes a random part; `stretch`: all of it, drawn to that shape,
                in training too, so that what stands at a share of its height and width stays there.
            background: What transparent pixels, and the edges that `pad` adds, are filled with.
            crop_scale: Smallest and largest share of the area that a random part has in training; (1, 1)
                still varies the ratio, unless with `pad`. Nothing is cropped with `stretch`.
            flip: Probability of mirroring left and right in training; leave 0 where captions name sides.
            colour_jitter: Brightness, contrast and saturation are each multiplied by up to 1 +- this.

        Raises:
            ValueError: A size or a share that there is not.
        """
        self.height, self.width = (size, size) if isinstance(size, int) else size
        if min(self.height, self.width) < 1:
            raise ValueError(f"size {size}: must be at least 1")
        if not 0 < crop_scale[0] <= crop_scale[1] <= 1:
            raise ValueError(
                f"crop_scale {crop_scale}: must be a smaller and a larger share, above 0, up to 1"
            )
        self.members = tuple(members)
        self.every = every
        self.fit = fit
        self.background = background
        self.crop_scale = crop_scale
        self.flip = flip
        self.colour_jitter = colour_jitter
        self.max_pixels = MAX_PIXELS

    def describe(self) -> str:
        """The extensions that it reads."""
        return ", ".join(self.members)

    def matching(self, members: Mapping[str, bytes]) -> list[str]:
        """The extensions of a sample that are read, in their order."""
        return matching(members, self.members)[: None if self.every else 1]

    def finds(self, members: Mapping[str, bytes]) -> bool:
        """Whether the sample has a picture."""
        return len(self.matching(members)) > 0

    def count(self, members: Mapping[str, bytes], *, training: bool) -> int:
        """Pictures that are read."""
        return len(self.matching(members))

    @property
    def keeps_places(self) -> bool:
        """Whether a share of the picture's height and width is the same place in what is read of it."""
        return self.fit == "stretch" and self.flip == 0

    def read(self, members: Mapping[str, bytes], rng: Random | None) -> tuple[Tensor, ...]:
        """The picture, or all, or none."""
        return tuple(self.transform(members[name], rng) for name in self.matching(members))

    def transform(self, data: bytes, rng: Random | None) -> UInt8[Tensor, "3 height width"]:
        """Decode and transform one picture; `rng` None: as in evaluation."""
        header = read_image_header(data, max_pixels=self.max_pixels)
        height, width = header.height, header.width
        aspect = self.width / self.height
        whole = self.fit == "stretch"
        box = Box(0, 0, height, width) if whole else middle_box(height, width, self.fit, aspect=aspect)
        if rng is not None and not whole:
            within = (box.height, box.width) if self.fit == "pad" else (height, width)
            part = random_box(*within, self.crop_scale, rng, aspect=aspect)
            origin = (box.top, box.left) if self.fit == "pad" else (0, 0)
            box = Box(origin[0] + part.top, origin[1] + part.left, part.height, part.width)
        # Evaluation decodes every pixel, so that its numbers compare with those of others; in training a JPEG
        # may be decoded at a fraction of its size that has about as many pixels as the crop needs.
        wanted = max(self.height / box.height, self.width / box.width) if rng is not None else 1.0
        wanted = 0.5 if 0.5 < wanted <= _HALF else min(wanted, 1.0)
        pixels, factor = decode_image(data, header, least=wanted, background=self.background)
        image = self._cut(pixels, box, factor)
        if rng is not None and self.flip > 0 and rng.random() < self.flip:
            image = image.flip(-1)
        if rng is not None and self.colour_jitter > 0:
            image = jitter(image, self.colour_jitter, rng)
        return image

    def _cut(
        self, pixels: UInt8[np.ndarray, "h w 3"], box: Box, factor: float
    ) -> UInt8[Tensor, "3 height width"]:
        """Cut a box out of a picture decoded at a factor of its size, and resize it (bicubic, antialiased).

        The box is moved to whole pixels of what was decoded.
        """
        height, width = pixels.shape[:2]
        top, bottom, above, below = _span(box.top * factor, box.height * factor, height, self.height)
        left, right, before, behind = _span(box.left * factor, box.width * factor, width, self.width)
        # Contiguous, and with the colours of a pixel together: the layout that torch resizes fastest.
        inside = torch.from_numpy(np.ascontiguousarray(pixels[top:bottom, left:right]))[None].permute(
            0, 3, 1, 2
        )
        image = F.interpolate(inside, (below - above, behind - before), mode="bicubic", antialias=True)[0]
        if image.shape[1:] == (self.height, self.width):
            return image
        canvas = self.blank().clone()
        canvas[:, above:below, before:behind] = image
        return canvas

    def blank(self) -> UInt8[Tensor, "3 height width"]:
        """A picture of background."""
        colour = torch.tensor(self.background, dtype=torch.uint8)
        return colour[:, None, None].expand(3, self.height, self.width)

    def stack(self, rows: Sequence[Tensor]) -> Rows:
        """All pictures have one size; the colours of a pixel lie together in memory (channels last)."""
        # In a worker, torch stacks straight into memory that the processes share.
        return Rows(default_collate([row.permute(1, 2, 0) for row in rows]).permute(0, 3, 1, 2), None)


def jitter(image: UInt8[Tensor, "3 h w"], strength: float, rng: Random) -> UInt8[Tensor, "3 h w"]:
    """Multiply brightness, then contrast, then saturation by factors from max(0, 1 - s) to 1 + s.

    Each as torchvision's adjust_* (a blend with black, with the mean grey value, with the grey picture), but
    rounded once at the end.
    """
    low = max(0.0, 1.0 - strength)
    brightness, contrast, saturation = (low + (1.0 + strength - low) * rng.random() for _ in range(3))
    luma = torch.tensor(_LUMA)[:, None, None]
    colour = (image.float() * brightness).clamp_(0, 255)
    mean = (colour * luma).sum(0).mean()
    colour = colour.sub_(mean).mul_(contrast).add_(mean).clamp_(0, 255)
    grey = (colour * luma).sum(0)
    return colour.sub_(grey).mul_(saturation).add_(grey).clamp_(0, 255).round_().to(torch.uint8)
