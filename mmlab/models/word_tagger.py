"""A tag for each word of a text, with or without a picture beside it."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmlab.batch import NOBODY, Batch, Input, Modality
from mmlab.models.encoders.encoder import Encoded, Encoder
from mmlab.models.encoders.transformer_layer import TransformerLayer
from mmlab.models.fusion.shared_space import never_empty
from mmlab.models.fusion.tower import FusionTower, lay_out, owned
from mmlab.models.regions import regions


class WordTagger(nn.Module):
    """A text encoder, a look at a picture if there is one, and logits at the first token of each word.

    The look is attention from every token to the tokens of the picture, added through a gate that is closed
    at the start: x + tanh(g) (layer(x, picture) - x), as Flamingo's (arXiv:2204.14198, section 2.2). Where
    the picture is the page that the words stand on, each token looks at what is behind its word instead:
    x + tanh(g) W norm(r), r being the mean of the picture's features in the word's box
    (:func:`~mmlab.models.regions.regions`). A sample without a picture is read as it is.
    """

    def __init__(
        self,
        text: Encoder,
        *,
        tags: int,
        dropout: float = 0.1,
        image: FusionTower | None = None,
        num_heads: int = 8,
        grid: tuple[int, int] | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            text: Encoder of text, read by a `WordReader`.
            tags: Number of tags.
            dropout: Probability on what the tags are told from.
            image: Encoder of pictures, with `keep_tokens`.
            num_heads: Of the look at a picture.
            grid: Rows and columns in which the picture's tokens lie, where it is the page that the words
                stand on (a size of 640 x 320 and a stride of 32: 20 and 10). None: it is another picture.

        Raises:
            ValueError: An encoder of another modality, or a grid without a picture.
        """
        super().__init__()
        for name, encoder in (("text", text), ("image", None if image is None else image.encoder)):
            if encoder is not None and encoder.modality != name:
                raise ValueError(
                    f"{name} has {type(encoder).__name__}, an encoder of {encoder.modality}: give one of "
                    f"{name}"
                )
        if grid is not None and (image is None or min(grid) < 1):
            raise ValueError(f"grid={grid} says how the tokens of a picture lie: give image, or leave it out")
        self.text = text
        self.image = image
        self.grid = grid
        self.tags = tags
        if image is not None:
            self.project = nn.Sequential(nn.LayerNorm(image.dim), nn.Linear(image.dim, text.dim))
            self.gate = nn.Parameter(torch.zeros(1))
            if grid is None:
                hidden = 2 * text.dim
                self.look = TransformerLayer(text.dim, num_heads=num_heads, hidden=hidden, dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(text.dim, tags)

    def forward(self, batch: Batch) -> Float[Tensor, "words tags"]:
        """Logits of the tags of every word of every sample, one after the other.

        Raises:
            ValueError: The run does not read words, no pictures where the model has a tower for them, or no
                boxes or pictures of another size where it has a grid.
        """
        text = batch.text
        if text is None or text.target is None:
            raise ValueError("the model tags words: read them by data.text (mmlab.data.words.WordReader)")
        tokens = self.text(text).tokens.float()
        if self.image is not None:
            tokens = self._looked(tokens, batch, text)
        logits: Tensor = self.head(self.dropout(tokens)).float()
        # Added, so that a batch without words has a gradient too, of zeros.
        return logits[owned(text.target, text)] + logits.sum() * 0

    def _looked(
        self, tokens: Float[Tensor, "rows tokens dim"], batch: Batch, text: Input
    ) -> Float[Tensor, "rows tokens dim"]:
        """Tokens that have looked at the picture of their sample."""
        assert self.image is not None
        if batch.image is None:
            raise ValueError(
                f"the model has a tower for {Modality.IMAGE}, but the data module reads none: add it there, "
                "or remove the tower"
            )
        encoded = self.image(batch.image)
        encoded = encoded._replace(tokens=self.project(encoded.tokens))
        owner = text.owner.clamp(min=0)
        if self.grid is None:
            shown = never_empty(encoded)
            looked = self.look(tokens, shown.mask[owner][:, None, None, :], context=shown.tokens[owner])
            added = looked - tokens
        else:
            if text.box is None:
                raise ValueError(
                    "the model looks at the page behind each word, but the data read no boxes: set "
                    "data.text.boxes of a WordReader (`json.boxes`), or leave grid out"
                )
            added = regions(page(encoded, self.grid)[owner], text.box)
        there = encoded.mask.any(dim=1)[owner] & (text.owner != NOBODY)
        seen: Tensor = (torch.tanh(self.gate) * added).masked_fill(~there[:, None, None], 0)
        return tokens + seen


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


def by_sample(logits: Float[Tensor, "words tags"], text: Input) -> Encoded:
    """What a tagger gave of the words of a text: a row for each sample, and what is there of it."""
    assert text.target is not None
    return lay_out(logits, owned(text.target, text), text)
