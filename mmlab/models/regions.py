"""The part of a picture that stands behind each word of a page."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def regions(
    grid: Float[Tensor, "rows height width dim"], box: Float[Tensor, "rows tokens 4"], *, points: int = 2
) -> Float[Tensor, "rows tokens dim"]:
    """The features of a picture inside boxes.

    The mean of the features at `points` x `points` places evenly spread over each box, each interpolated
    linearly between the four nearest features: RoIAlign with one bin (He et al. 2017, arXiv:1703.06870,
    section 3), as torchvision's `roi_align(..., output_size=1, sampling_ratio=points, aligned=True)`.

    Args:
        grid: Features in rows and columns; each stands for an equal part of its picture.
        box: Left, top, right and bottom as shares of the picture.
        points: Along each side of a box.
    """
    left, top, right, bottom = box.float().unbind(dim=2)
    steps = (torch.arange(points, device=box.device) + 0.5) / points
    across = left[..., None] + (right - left)[..., None] * steps
    down = top[..., None] + (bottom - top)[..., None] * steps
    x = across[:, :, None, :].expand(-1, -1, points, -1)
    y = down[:, :, :, None].expand(-1, -1, -1, points)
    where = torch.stack([x, y], dim=-1).flatten(2, 3) * 2 - 1
    maps = grid.float().permute(0, 3, 1, 2)
    found = F.grid_sample(maps, where, mode="bilinear", padding_mode="border", align_corners=False)
    return found.mean(dim=3).transpose(1, 2)
