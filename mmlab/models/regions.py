"""The part of a picture that stands behind each word of a page."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mmlab.batch import NOBODY, Input
from mmlab.models.encoders.encoder import Encoded


class RegionLook(nn.Module):
    """What a page shows behind each word, added to its tokens through a gate that is closed at the start.

    x + tanh(g) W norm(r), where r is the mean of the page's features in the word's box (:func:`regions`). A
    text without a page stays as it is.
    """

    def __init__(self, dim: int, *, image_dim: int, grid: tuple[int, int]) -> None:
        """Make the layers.

        Args:
            dim: Size of the text's tokens.
            image_dim: Size of the page's.
            grid: Rows and columns in which these lie.
        """
        super().__init__()
        self.grid = grid
        self.project = nn.Sequential(nn.LayerNorm(image_dim), nn.Linear(image_dim, dim))
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(
        self, tokens: Float[Tensor, "rows tokens dim"], text: Input, picture: Encoded
    ) -> Float[Tensor, "rows tokens dim"]:
        """Look.

        Args:
            tokens: Of the text.
            text: Whose rows they are, with boxes.
            picture: Tokens of each sample's page, none where it has none.

        Raises:
            ValueError: The text has no boxes, or a page other than one of the grid's size.
        """
        if text.box is None:
            raise ValueError(
                "the model looks at the page behind each word, but the data read no boxes: set "
                "data.text.boxes of a WordReader (`json.boxes`), or leave grid out"
            )
        owner = text.owner.clamp(min=0)
        shown = page(picture._replace(tokens=self.project(picture.tokens)), self.grid)
        there = picture.mask.any(dim=1)[owner] & (text.owner != NOBODY)
        seen: Tensor = torch.tanh(self.gate) * regions(shown[owner], text.box)
        return tokens + seen.masked_fill(~there[:, None, None], 0)


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


def page(encoded: Encoded, grid: tuple[int, int]) -> Float[Tensor, "samples height width dim"]:
    """The tokens of each sample's one picture in rows and columns; of a sample without one, anything finite.

    Raises:
        ValueError: There are more tokens, or fewer.
    """
    tokens, mask = encoded
    wanted = grid[0] * grid[1]
    counts = mask.sum(dim=1)
    wrong = counts[(counts != wanted) & (counts != 0)].tolist()
    if wrong:
        raise ValueError(
            f"grid={list(grid)} is {wanted} tokens, but a sample has {wrong[0]}: set it to the size of "
            "data.image divided by the stride of the image encoder, and read one picture of each sample"
        )
    tokens = tokens.masked_fill(~mask[:, :, None], 0)
    if tokens.shape[1] != wanted:  # nobody has a picture
        tokens = tokens[:, :1].expand(-1, wanted, -1)
    return tokens.reshape(len(tokens), *grid, -1)
