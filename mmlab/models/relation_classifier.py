"""Which relation holds between two marked entities of a text, with or without a picture beside it."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmlab.batch import NOBODY, Batch, Input
from mmlab.models.encoders.encoder import Encoder
from mmlab.models.fusion.tower import FusionTower, owned
from mmlab.models.fusion_classifier import Classified
from mmlab.models.look import GatedLook, check_modalities, picture_of


class RelationClassifier(nn.Module):
    """A text encoder, a look at a picture if there is one, and logits from the states of two markers.

    The states at the start markers of head and tail, one behind the other, go through a norm and a linear
    layer (Baldini Soares et al. 2019, arXiv:1906.03158, section 3.2: entity markers, entity start). The look
    is :class:`~mmlab.models.look.GatedLook`; a sample without a picture is read as it is.
    """

    def __init__(
        self,
        text: Encoder,
        *,
        relations: int,
        dropout: float = 0.1,
        image: FusionTower | None = None,
        num_heads: int = 8,
    ) -> None:
        """Put the parts together.

        Args:
            text: Encoder of text, read by an `EntityPairReader`.
            relations: Number of relations, with that of no relation.
            dropout: Probability on what the relation is told from.
            image: Encoder of pictures, with `keep_tokens`.
            num_heads: Of the look at a picture.

        Raises:
            ValueError: An encoder of another modality.
        """
        super().__init__()
        check_modalities(text, image)
        self.text = text
        self.image = image
        self.relations = relations
        if image is not None:
            self.look = GatedLook(text.dim, image_dim=image.dim, num_heads=num_heads, dropout=dropout)
        self.head = nn.Sequential(
            nn.LayerNorm(2 * text.dim), nn.Dropout(dropout), nn.Linear(2 * text.dim, relations)
        )

    def forward(self, batch: Batch) -> Classified:
        """Logits of the relations of every sample.

        Raises:
            ValueError: The run does not read pairs of entities, or no pictures where the model has a tower
                for them.
        """
        text = batch.text
        if text is None or text.target is None:
            raise ValueError(
                "the model tells relations: read two entities by data.text "
                "(mmlab.data.entity_pair.EntityPairReader)"
            )
        tokens = self.text(text).tokens.float()
        if self.image is not None:
            tokens = self.look(tokens, text, picture_of(batch, self.image))
        logits: Tensor = self.head(pair_states(tokens, text)).float()
        # Added, so that a batch without words has a gradient too, of zeros.
        return Classified(logits + tokens.sum() * 0, batch.valid, batch.place)


def pair_states(tokens: Float[Tensor, "rows tokens dim"], text: Input) -> Float[Tensor, "samples twice"]:
    """The states of the two tokens that are told of in each sample's row, zeros where a sample has none.

    They stand in the order of their token ids, not of the text: the start markers of head and tail are
    different tokens, so the same one always comes first.

    Raises:
        ValueError: A sample has more or fewer than two such tokens.
    """
    assert text.target is not None
    marked = owned(text.target, text)
    has = text.owner != NOBODY
    if (marked.sum(dim=1) != 2 * has).any() or has.sum() != text.present.sum():
        raise ValueError(
            "a sample has more or fewer than two tokens that are told of: read pairs of entities by "
            "data.text (mmlab.data.entity_pair.EntityPairReader)"
        )
    ids = text.data[marked].view(-1, 2)
    order = ids.argsort(dim=1)
    states = tokens[marked].view(-1, 2, tokens.shape[2])
    states = states.gather(1, order[:, :, None].expand_as(states)).flatten(1)
    found = states.new_zeros(len(text.present), states.shape[1])
    return torch.index_put(found, (text.owner[has],), states)
