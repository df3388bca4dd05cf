"""Text by any transformers model that gives hidden states."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mmlab.batch import Input, Modality
from mmlab.models.encoders.encoder import Encoded, Encoder
from mmlab.models.layout import Layout
from mmlab.models.pretrained import SpecialTokens, load_special_tokens, load_text


class TextEncoder(Encoder):
    """A transformers model without its pooling layer, on token ids padded on the right.

    Decoder-only language models work too; their tokens see only what stands before them, so pool the last
    one (:class:`mmlab.models.pooling.LastTokenPooling`).
    """

    modality = Modality.TEXT

    def __init__(
        self,
        name: str,
        *,
        pretrained: bool = True,
        dropout: float | None = None,
        layout: Layout | None = None,
    ) -> None:
        """Load the model.

        Args:
            name: An asset, a folder, or a Hugging Face id; the data module must use its tokenizer.
            pretrained: False starts from random weights.
            dropout: Probability in every dropout layer; None leaves the model's own.
            layout: Adds where each token stands on its page to what the model reads of it; the boxes come
                with the words (`data.text.boxes`). None: text is read without.

        Raises:
            ValueError: No such model, it has no dropout layer to set, or the layout is of another size.
        """
        super().__init__()
        self.name = name
        self.backbone = load_text(name, pretrained=pretrained)
        self.dim = self.backbone.config.hidden_size
        self.max_length = _positions(self.backbone)
        if layout is not None and layout.dim != self.backbone.get_input_embeddings().embedding_dim:
            size = self.backbone.get_input_embeddings().embedding_dim
            raise ValueError(f"layout.dim={layout.dim}, but {name!r} reads tokens of size {size}: set it so")
        self.layout = layout
        if dropout is not None:
            layers = [module for module in self.backbone.modules() if isinstance(module, nn.Dropout)]
            if not layers:
                raise ValueError(f"{name!r} has no dropout layers: leave dropout={dropout} out")
            for layer in layers:
                layer.p = dropout

    @property
    def words(self) -> nn.Embedding:
        """The table of word embeddings."""
        table = self.backbone.get_input_embeddings()
        assert isinstance(table, nn.Embedding)
        return table

    def special_tokens(self) -> SpecialTokens:
        """Which ids of the model's own tokenizer stand for no word.

        Raises:
            ValueError: There is no tokenizer beside the model.
        """
        return load_special_tokens(self.name)

    def encode(self, inputs: Input) -> Encoded:
        """Encode token ids, int64 [rows, tokens].

        Raises:
            ValueError: The text is longer than the model's positions, or has no boxes for its layout.
        """
        mask, tokens = inputs.mask, inputs.data.shape[1]
        assert mask is not None, "text without lengths"
        if self.max_length is not None and tokens > self.max_length:
            raise ValueError(
                f"a text of {tokens} tokens, but {self.name!r} has {self.max_length} positions: "
                "lower max_length of the text in the data module"
            )
        output = self.backbone(**self._read(inputs), attention_mask=mask.long())
        hidden: Tensor = output.last_hidden_state
        return Encoded(hidden, mask)

    def _read(self, inputs: Input) -> dict[str, Tensor]:
        """Token ids, or the embeddings of tokens at their places."""
        if self.layout is None:
            return {"input_ids": inputs.data}
        if inputs.box is None:
            raise ValueError(
                "the text encoder has a layout, but the data read no boxes: set data.text.boxes of a "
                "WordReader (`json.boxes`), or leave the layout out"
            )
        table: Any = self.backbone.get_input_embeddings()
        embeddings: Tensor = table(inputs.data)
        return {"inputs_embeds": embeddings + self.layout(inputs.box).to(embeddings.dtype)}

    def example(self) -> Input:
        """Two tokens, at a place where there is a layout."""
        blank = super().example()
        return blank if self.layout is None else replace(blank, box=torch.zeros(*blank.data.shape, 4))


def _positions(backbone: nn.Module) -> int | None:
    """The tokens that a model has positions for; None where nothing tells.

    RoBERTa and its kind count from behind the number of the padding token, so a few at the start are no
    token's.
    """
    for name, module in backbone.named_modules():
        table = name.rpartition(".")[2] == "position_embeddings" and isinstance(module, nn.Embedding)
        if table and module.padding_idx is not None:
            return int(module.num_embeddings - module.padding_idx - 1)
    most: int | None = getattr(backbone.config, "max_position_embeddings", None)
    return most
