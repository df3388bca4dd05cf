"""Two towers, one of text, whose tokens also meet: what is trained without labels."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from mmlab.batch import Batch, Embeddings, Input, Modality
from mmlab.models.caption_decoder import CaptionDecoder
from mmlab.models.dual_encoder import DualEncoderOutput, Tower, Towers, embeddings
from mmlab.models.encoders.encoder import Encoded, input_of
from mmlab.models.encoders.text import TextEncoder
from mmlab.models.fusion.shared_space import never_empty
from mmlab.models.fusion.tower import owned, side_by_side
from mmlab.models.fusion.transformer import TransformerFusion
from mmlab.models.heads import ClassificationHead, WordHead
from mmlab.models.pooling import FirstTokenPooling


class ToldWords(NamedTuple):
    """What the model thinks of words that it is to tell."""

    logits: Float[Tensor, "targets vocabulary"]
    token: Int64[Tensor, " targets"]
    """The word."""
    place: Int64[Tensor, " targets"]
    """Place of the sample that it belongs to."""


class Read(NamedTuple):
    """What the encoders give of every row."""

    text: Encoded
    beside: Encoded


class PretrainingOutput(NamedTuple):
    """What becomes of a batch; None where the model has no part for it."""

    embeddings: DualEncoderOutput
    read: Read
    guessed: ToldWords | None
    """Of the words that are hidden in the batch; None where none are."""
    said: ToldWords | None
    """Of each word after those before it."""

    def get(self, modality: Modality) -> Embeddings:
        """The vectors of a modality."""
        return self.embeddings.get(modality)


class PretrainingModel(Towers):
    """A tower of text and one of pictures, sounds or signals, a fusion of their tokens, and what reads it.

    ALBEF's form (Li et al. 2021, arXiv:2107.07651): each tower gives vectors that can be compared, and tokens
    that a fusion reads together, in which hidden words are guessed and pairs are told from others. Parts that
    no objective needs are left out. Towers, projections and fusion are those of `DualEncoder` and
    `FusionClassifier`, by the same names.
    """

    def __init__(
        self,
        text: Tower,
        *,
        image: Tower | None = None,
        audio: Tower | None = None,
        signal: Tower | None = None,
        fusion: TransformerFusion | None = None,
        masked: bool = False,
        matching: bool = False,
        decoder: CaptionDecoder | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            text: Encoder and projection of text.
            image: Of pictures; or
            audio: of sounds; or
            signal: of signals.
            fusion: Made for the sizes of both encoders' tokens; needed to guess words and to match.
            masked: Whether hidden words are guessed.
            matching: Whether pairs are told from others.
            decoder: Says the text, looking at what it is of.

        Raises:
            ValueError: Not two towers; parts that do not fit, or that nothing reads.
        """
        super().__init__(image=image, text=text, audio=audio, signal=signal)
        others = [modality for modality in self.modalities if modality is not Modality.TEXT]
        if len(others) != 1:
            raise ValueError(
                f"towers of {', '.join(self.modalities)}: pretraining takes text and one other: give one of "
                "image, audio, signal"
            )
        self.beside = others[0]
        self.fusion = fusion
        self.decoder = decoder
        sizes = {modality: tower.encoder.dim for modality, tower in self.towers()}
        _check_fusion(fusion, sizes, needed=masked or matching)
        if decoder is not None and decoder.sees != sizes[self.beside]:
            raise ValueError(
                f"the decoder is made for tokens of size {decoder.sees}, but the {self.beside} encoder gives "
                f"{sizes[self.beside]}: set its sees to that"
            )
        self.matching_head: ClassificationHead | None = None
        self.masked_head: WordHead | None = None
        self.decoder_head: WordHead | None = None
        if matching and fusion is not None:
            self.matching_head = ClassificationHead(fusion.dim, classes=1, pooling=FirstTokenPooling())
        if masked and fusion is not None:
            self._prepare_masks(fusion.dim)
        if decoder is not None:
            words, size = self._words().weight.shape
            if decoder.words != size:
                raise ValueError(
                    f"the decoder is made for word embeddings of size {decoder.words}, but those of the text "
                    f"encoder have {size}: set its words to that"
                )
            self.decoder_head = WordHead(decoder.dim, words=size, vocabulary=words)

    def _prepare_masks(self, dim: int) -> None:
        encoder = self.text.encoder if self.text is not None else None
        words, size = self._words().weight.shape
        assert isinstance(encoder, TextEncoder)
        special = encoder.special_tokens()
        if special.mask is None:
            raise ValueError(
                f"the tokenizer of {encoder.name!r} has no mask token: set masked to false, or take an "
                "encoder that was trained with one, such as minilm-l6"
            )
        self.mask = special.mask
        ordinary = torch.ones(words, dtype=torch.bool)
        ordinary[list(special.every)] = False
        self.ordinary: Tensor
        self.register_buffer("ordinary", ordinary, persistent=False)
        self.masked_head = WordHead(dim, words=size, vocabulary=words)

    def _words(self) -> nn.Embedding:
        encoder = self.text.encoder if self.text is not None else None
        if not isinstance(encoder, TextEncoder):
            raise ValueError(
                f"words are told by a TextEncoder, and text has {type(encoder).__name__}: give it one, or "
                "leave masked and decoder out"
            )
        return encoder.words

    @property
    def directions(self) -> list[tuple[Modality, Modality]]:
        """From text to the other modality, and back."""
        return [(Modality.TEXT, self.beside), (self.beside, Modality.TEXT)]

    def ordinary_words(self, batch: Batch) -> Bool[Tensor, "rows steps"]:
        """Tokens of valid samples that stand for a word, not for an end, padding or nothing known."""
        text = _ids(input_of(batch, Modality.TEXT))
        assert text.mask is not None, "text without lengths"
        there = owned(text.mask, text) & batch.valid[text.owner.clamp(min=0)][:, None]
        return there & self.ordinary[text.data]

    def forward(self, batch: Batch) -> PretrainingOutput:
        """Run every tower once, and that of text once more where the batch has hidden words.

        Raises:
            ValueError: The run does not read a modality that the model has a tower for.
        """
        vectors: dict[str, Embeddings | None] = {modality.value: None for modality in Modality}
        read = {}
        for modality, tower in self.towers():
            inputs = input_of(batch, modality)
            read[modality] = tower.encoder(inputs)
            vectors[modality.value] = embeddings(tower.embed(read[modality]), inputs, batch)
        text = input_of(batch, Modality.TEXT)
        beside = side_by_side(read[self.beside], input_of(batch, self.beside))
        return PretrainingOutput(
            DualEncoderOutput(**vectors),
            Read(read[Modality.TEXT], read[self.beside]),
            None if self.masked_head is None or text.masked is None else self._guess(batch, text, beside),
            None if self.decoder is None else self._say(batch, text, beside),
        )

    def match(
        self, batch: Batch, read: Read, text: Int64[Tensor, " pairs"], beside: Int64[Tensor, " pairs"]
    ) -> Float[Tensor, " pairs"]:
        """Whether texts belong to what they are put beside: a logit each, positive where they do.

        Args:
            batch: What was read.
            read: What became of it.
            text: The sample of each pair's text.
            beside: The sample of what it is put beside.
        """
        assert self.fusion is not None, "a model that does not match"
        assert self.matching_head is not None, "a model that does not match"
        parts = {
            Modality.TEXT: _chosen(side_by_side(read.text, input_of(batch, Modality.TEXT)), text),
            self.beside: _chosen(side_by_side(read.beside, input_of(batch, self.beside)), beside),
        }
        logits: Tensor = self.matching_head(self.fusion(parts))
        return logits[:, 0]

    def _guess(self, batch: Batch, text: Input, beside: Encoded) -> ToldWords:
        """Guess the hidden words from the rest of the text and what it is of."""
        assert self.fusion is not None
        assert self.masked_head is not None
        assert self.text is not None
        assert text.masked is not None
        assert text.target is not None
        hidden = replace(text, data=text.masked, masked=None)
        encoded = self.text.encoder(hidden)
        parts = {Modality.TEXT: side_by_side(encoded, text), self.beside: beside}
        own = self.fusion.tokens_of(Modality.TEXT, parts, self.fusion(parts))
        # Tokens of a sample stand in the order of its rows, here and in the input.
        there = owned(encoded.mask, text)
        chosen = own.tokens[own.mask][text.target[there]]
        logits = self.masked_head(chosen, self._words().weight)
        return _told(logits, text.target & there, text.data, text.owner, batch)

    def _say(self, batch: Batch, text: Input, beside: Encoded) -> ToldWords:
        """Say each word after those before it, where there is something that the text is of."""
        assert self.decoder is not None
        assert self.decoder_head is not None
        mask = _ids(text).mask
        assert mask is not None
        table = self._words().weight
        owner = text.owner.clamp(min=0)
        seen = never_empty(beside)
        tokens = self.decoder(text.data, table, Encoded(seen.tokens[owner], seen.mask[owner]))
        known = batch.valid[owner] & beside.mask.any(dim=1)[owner]
        target = owned(mask, text)[:, 1:] & known[:, None]
        logits = self.decoder_head(tokens[:, :-1][target], table)
        return _told(logits, target, text.data[:, 1:], text.owner, batch)


def _check_fusion(fusion: TransformerFusion | None, sizes: dict[Modality, int], *, needed: bool) -> None:
    """Raise ValueError unless there is a fusion of these sizes just where one is needed."""
    named = {modality.value: size for modality, size in sizes.items()}
    if fusion is None and needed:
        raise ValueError(f"masked and matching need a fusion: give one with dims={named}")
    if fusion is not None and not needed:
        raise ValueError("nothing reads the fusion: set masked or matching, or leave it out")
    if fusion is not None and dict(fusion.dims) != sizes:
        found = {modality.value: size for modality, size in fusion.dims.items()}
        raise ValueError(
            f"the encoders give {named}, but the fusion is made for {found}: set its dims to that"
        )


def _ids(text: Input) -> Input:
    """Raise ValueError where text is not token ids, but what the encoder gave of them."""
    if text.encoded:
        raise ValueError(
            "words are hidden and said by their ids, but data.loading.features brings what the text encoder "
            "gave: leave it out"
        )
    return text


def _chosen(encoded: Encoded, samples: Int64[Tensor, " pairs"]) -> Encoded:
    return Encoded(encoded.tokens[samples], encoded.mask[samples])


def _told(
    logits: Float[Tensor, "targets vocabulary"],
    target: Bool[Tensor, "rows steps"],
    ids: Int64[Tensor, "rows steps"],
    owner: Int64[Tensor, " rows"],
    batch: Batch,
) -> ToldWords:
    """Say which words these logits are of."""
    sample = owner.clamp(min=0)[:, None].expand_as(target)[target]
    return ToldWords(logits, ids[target], batch.place[sample])
