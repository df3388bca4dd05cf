"""Text by any transformers model that gives hidden states."""

from __future__ import annotations

from torch import Tensor, nn

from mmlab.batch import Input, Modality
from mmlab.models.encoders.encoder import Encoded, Encoder
from mmlab.models.pretrained import SpecialTokens, load_special_tokens, load_text


class TextEncoder(Encoder):
    """A transformers model without its pooling layer, on token ids padded on the right.

    Decoder-only language models work too; their tokens see only what stands before them, so pool the last
    one (:class:`mmlab.models.pooling.LastTokenPooling`).
    """

    modality = Modality.TEXT

    def __init__(self, name: str, *, pretrained: bool = True, dropout: float | None = None) -> None:
        """Load the model.

        Args:
            name: An asset, a folder, or a Hugging Face id; the data module must use its tokenizer.
            pretrained: False starts from random weights.
            dropout: Probability in every dropout layer; None leaves the model's own.

        Raises:
            ValueError: No such model, or it has no dropout layer to set.
        """
        super().__init__()
        self.name = name
        self.backbone = load_text(name, pretrained=pretrained)
        self.dim = self.backbone.config.hidden_size
        self.max_length: int | None = getattr(self.backbone.config, "max_position_embeddings", None)
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
            ValueError: The text is longer than the model's positions.
        """
        mask, tokens = inputs.mask, inputs.data.shape[1]
        assert mask is not None, "text without lengths"
        if self.max_length is not None and tokens > self.max_length:
            raise ValueError(
                f"a text of {tokens} tokens, but {self.name!r} has {self.max_length} positions: "
                "lower max_length of the text in the data module"
            )
        output = self.backbone(input_ids=inputs.data, attention_mask=mask.long())
        hidden: Tensor = output.last_hidden_state
        return Encoded(hidden, mask)
