"""Pretrained causal language models, fed with embeddings instead of token ids."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, GenerationConfig

from mmlab.models.network import Network
from mmlab.models.packed_attention import no_mask, pack, use_packed_attention
from mmlab.models.pretrained import load_causal, source_of

_TOLERANCE = 1e-4
"""Largest difference, as a share of the largest logit, that packing may make: float32 leaves 1e-5."""
_UNFIT = (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError)
"""What a model raises that is called in a way that it was not made for."""
_ROWS = 4096
"""Embeddings whose size is measured."""


class LanguageModel(Network):
    """A Hugging Face causal language model.

    What it reads comes packed: the samples one after the other, without padding. Where `packing` is off they
    are padded to the longest before they run.
    """

    def __init__(self, name: str, *, pretrained: bool = True, packing: bool = True) -> None:
        """Load the model.

        Args:
            name: An asset, a folder, or a Hugging Face id.
            pretrained: False gives the same architecture with random weights.
            packing: Run samples without padding; attention stays inside each sample.

        Raises:
            ValueError: No such model, or it computes something else when samples are packed.
        """
        super().__init__()
        self.name = name
        self.packing = packing
        self.ends: tuple[int, ...] = ()
        """Tokens that end an answer beside those of the generation config: those that prompts train."""
        self._tokenizer: Any = None
        self.backbone = load_causal(name, pretrained=pretrained)
        self.dim = int(self.backbone.get_input_embeddings().embedding_dim)
        if packing:
            self._check_packing()

    @property
    def max_length(self) -> int | None:
        """Tokens that the model was made for; None where its config does not say."""
        found = getattr(self.backbone.config.get_text_config(), "max_position_embeddings", None)
        return None if found is None else int(found)

    def try_out(self) -> None:
        """Run on two tokens, without packing."""
        device = self.backbone.get_input_embeddings().weight.device
        self.backbone(input_ids=torch.zeros(1, 2, dtype=torch.int64, device=device), use_cache=False)

    def decode(self, ids: Int64[Tensor, " tokens"]) -> str:
        """Text of token ids, without special tokens."""
        return str(self._own_tokenizer().decode(ids.tolist(), skip_special_tokens=True)).strip()

    def reads(self, tokenizer: str) -> bool:
        """Whether the token ids of a tokenizer mean the same to this model; of its own they do.

        Args:
            tokenizer: Name of an asset, a folder, or a name on the model hub.
        """
        source = source_of(tokenizer)
        if source == source_of(self.name):
            return True
        given: dict[str, int] = AutoTokenizer.from_pretrained(source).get_vocab()
        own: dict[str, int] = self._own_tokenizer().get_vocab()
        return given.items() <= own.items()

    def _own_tokenizer(self) -> Any:
        if self._tokenizer is None:
            self._tokenizer = AutoTokenizer.from_pretrained(source_of(self.name))
        return self._tokenizer

    def embed(self, ids: Int64[Tensor, " tokens"]) -> Float[Tensor, "tokens dim"]:
        """Embeddings of token ids."""
        embedded: Tensor = self.backbone.get_input_embeddings()(ids)
        return embedded

    @torch.no_grad()
    def embedding_scale(self) -> float:
        """Root mean square of the entries of the embeddings."""
        table: Tensor = self.backbone.get_input_embeddings().weight
        some = torch.arange(min(len(table), _ROWS), device=table.device)
        # As the model reads them: Gemma's are larger than their table.
        return float(self.embed(some).float().square().mean().sqrt())

    def forward(
        self,
        embedded: Float[Tensor, "tokens dim"],
        length: Int64[Tensor, " samples"],
        at: Int64[Tensor, " asked"],
    ) -> Float[Tensor, "asked vocabulary"]:
        """What follows some tokens, as logits; at no other token is the vocabulary gone through.

        Args:
            embedded: The samples, one after the other.
            length: Tokens of each sample.
            at: Tokens, counted over all samples, whose successor is asked for.
        """
        if self.packing:
            return self._packed(embedded, length, at)
        rows = pad_sequence(list(torch.split(embedded, length.tolist())), batch_first=True)
        mask = torch.arange(rows.shape[1], device=length.device) < length[:, None]
        row = torch.repeat_interleave(length)[at]
        step = at - (length.cumsum(0) - length)[row]
        steps, which = torch.unique(step, return_inverse=True)
        logits: Tensor = self.backbone(
            inputs_embeds=rows, attention_mask=mask.long(), logits_to_keep=steps, use_cache=False
        ).logits
        return logits[row, which]

    def _packed(self, embedded: Tensor, length: Tensor, at: Tensor) -> Tensor:
        packing = pack(length)
        logits: Tensor = self.backbone(
            inputs_embeds=embedded[None],
            attention_mask=no_mask(embedded),
            position_ids=packing.position,
            logits_to_keep=at,
            use_cache=False,
            packing=packing,
        ).logits
        return logits[0]

    @torch.no_grad()
    def _check_packing(self) -> None:
        """Raise ValueError where packed samples see each other, as in models with a running state."""
        training = self.backbone.training
        self.backbone.eval()
        length, at = torch.tensor([5, 3, 4]), torch.arange(12)
        vocabulary = self.backbone.get_input_embeddings().num_embeddings
        embedded = self.embed((at * 7 + 3) % vocabulary)
        alone = torch.cat([
            self.backbone(inputs_embeds=sample[None], use_cache=False).logits[0]
            for sample in torch.split(embedded, length.tolist())
        ])  # fmt: skip
        try:
            use_packed_attention(self.backbone)
            together = self._packed(embedded, length, at)
        except _UNFIT as error:
            raise ValueError(
                f"{self.name!r} does not run with samples packed ({error}): set packing to false"
            ) from error
        difference = float((together - alone).abs().max() / alone.abs().max())
        if not difference < _TOLERANCE:
            raise ValueError(
                f"{self.name!r} gives other logits when samples are packed (by {difference:.2%}): set "
                "packing to false"
            )
        self.backbone.train(training)

    def generate(
        self,
        embedded: Float[Tensor, "tokens dim"],
        length: Int64[Tensor, " samples"],
        *,
        settings: GenerationConfig,
        together: bool = False,
    ) -> Int64[Tensor, "samples new"]:
        """Continue every sample, with keys and values cached.

        Args:
            embedded: The samples, one after the other.
            length: Tokens of each sample.
            settings: How the next token is chosen, and when it ends.
            together: Go on until the samples of all ranks have ended: where weights are sharded, every rank
                must run as many steps.

        Returns:
            What follows each sample, without it; padded after its end.
        """
        samples = list(torch.split(embedded, length.tolist()))
        # The last token of every prompt stands in the last column.
        rows = pad_sequence(samples, batch_first=True, padding_side="left")
        column = torch.arange(rows.shape[1], device=length.device)
        mask: Bool[Tensor, "samples longest"] = column >= rows.shape[1] - length[:, None]
        options: dict[str, Any] = {"generation_config": settings, "synced_gpus": together}
        ids: Tensor = self.backbone.generate(inputs_embeds=rows, attention_mask=mask.long(), **options)
        return ids
