"""Where on its page a token stands, as a vector that is added to what is read of it."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class Layout(nn.Module):
    """An embedding of the box of each token's word, zero at the start: it disturbs no pretrained model.

    As LayoutLM's (Xu et al. 2020, arXiv:1912.13318, section 2.2, as released): X[x_0] + X[x_1] + Y[y_0] +
    Y[y_1] + W[x_1 - x_0] + H[y_1 - y_0], each number choosing the row of a table that is nearest to it.
    LayoutLM has 1,001 rows in a table and millions of pages to learn them from; from a hundred or so receipts
    few rows are learned better than many.
    """

    def __init__(self, dim: int, *, buckets: int = 51) -> None:
        """Make the tables.

        Args:
            dim: Size of the embeddings of tokens.
            buckets: Rows of each table, from one edge of the page to the other.

        Raises:
            ValueError: Fewer than two buckets.
        """
        super().__init__()
        if buckets < 2:
            raise ValueError(f"layout.buckets={buckets}: at least 2, one for each edge of the page")
        self.dim = dim
        self.buckets = buckets
        self.x, self.y, self.width, self.height = (nn.Embedding(buckets, dim) for _ in range(4))
        for table in (self.x, self.y, self.width, self.height):
            nn.init.zeros_(table.weight)

    def forward(self, box: Float[Tensor, "rows tokens 4"]) -> Float[Tensor, "rows tokens dim"]:
        """The embedding of each box: left, top, right and bottom as shares of the page."""
        left, top, right, bottom = (box.float() * (self.buckets - 1)).round().long().unbind(dim=2)
        across: Tensor = self.x(left) + self.x(right) + self.width(right - left)
        down: Tensor = self.y(top) + self.y(bottom) + self.height(bottom - top)
        return across + down
