"""A tag for each word of a text, with or without a picture beside it."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from mmlab.batch import Batch, Input
from mmlab.models.encoders.encoder import Encoded, Encoder
from mmlab.models.fusion.tower import FusionTower, lay_out, owned
from mmlab.models.look import GatedLook, check_modalities, picture_of
from mmlab.models.regions import RegionLook


class WordTagger(nn.Module):
    """A text encoder, a look at a picture if there is one, and logits at the first token of each word.

    The look is :class:`~mmlab.models.look.GatedLook`, or :class:`~mmlab.models.regions.RegionLook` where the
    picture is the page that the words stand on. A sample without a picture is read as it is.
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
        check_modalities(text, image)
        if grid is not None and (image is None or min(grid) < 1):
            raise ValueError(f"grid={grid} says how the tokens of a picture lie: give image, or leave it out")
        self.text = text
        self.image = image
        self.tags = tags
        if image is not None and grid is None:
            self.look: GatedLook | RegionLook = GatedLook(
                text.dim, image_dim=image.dim, num_heads=num_heads, dropout=dropout
            )
        elif image is not None and grid is not None:
            self.look = RegionLook(text.dim, image_dim=image.dim, grid=grid)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(text.dim, tags)

    def forward(self, batch: Batch) -> Float[Tensor, "words tags"]:
        """Logits of the tags of every word of every sample, one after the other.

        Raises:
            ValueError: The run does not read words, or no pictures where the model has a tower for them.
        """
        text = batch.text
        if text is None or text.target is None:
            raise ValueError("the model tags words: read them by data.text (mmlab.data.words.WordReader)")
        tokens = self.text(text).tokens.float()
        if self.image is not None:
            tokens = self.look(tokens, text, picture_of(batch, self.image))
        logits: Tensor = self.head(self.dropout(tokens)).float()
        # Added, so that a batch without words has a gradient too, of zeros.
        return logits[owned(text.target, text)] + logits.sum() * 0


def by_sample(logits: Float[Tensor, "words tags"], text: Input) -> Encoded:
    """What a tagger gave of the words of a text: a row for each sample, and what is there of it."""
    assert text.target is not None
    return lay_out(logits, owned(text.target, text), text)
