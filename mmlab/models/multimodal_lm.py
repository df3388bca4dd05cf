"""A causal language model that reads images, sounds and signals among its text, or looks at them from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

from jaxtyping import Float, Int64
from torch import Tensor, nn
from transformers import GenerationConfig

from mmlab.batch import NOBODY, Batch, Input, Modality
from mmlab.models.cross_attention import CrossAttention, Injection
from mmlab.models.interleave import Interleaved, Media, interleave, put_beside, questions
from mmlab.models.language_model import LanguageModel
from mmlab.models.media import MediaTower


class Said(NamedTuple):
    """What the model thinks of each token that it is to say."""

    logits: Float[Tensor, "targets vocabulary"]
    token: Int64[Tensor, " targets"]
    """The token to be said."""
    row: Int64[Tensor, " targets"]
    """Row of the text that it belongs to."""
    place: Int64[Tensor, " targets"]
    """Place of the sample that it belongs to."""


class MultimodalLM(nn.Module):
    """Encoders, projections and a language model (LLaVA: Liu et al. 2023, arXiv:2304.08485).

    A prompt names media by markers, any number of any modality in any order. Their tokens stand there among
    those of the text; with `injection` the text looks at them through layers put into the language model
    (Flamingo: Alayrac et al. 2022, arXiv:2204.14198), which at the start computes what it did without.
    """

    def __init__(
        self,
        language: LanguageModel,
        *,
        image: MediaTower | None = None,
        audio: MediaTower | None = None,
        signal: MediaTower | None = None,
        injection: CrossAttention | None = None,
    ) -> None:
        """Put the parts together; without any tower it is the language model alone.

        Args:
            language: The language model.
            image: Encoder and projection of images.
            audio: Of sounds.
            signal: Of signals.
            injection: Media stand beside the text, which looks at them; None: they stand among it.

        Raises:
            ValueError: An encoder of another modality, a projection to another size than the language
                model's, or an injection that does not fit.
        """
        super().__init__()
        self.image = image
        self.audio = audio
        self.signal = signal
        self.language = language
        for modality, tower in self.towers():
            if tower.encoder.modality != modality:
                raise ValueError(
                    f"the {modality} tower has {type(tower.encoder).__name__}, an encoder of "
                    f"{tower.encoder.modality}: move it to that tower"
                )
            if tower.dim != language.dim:
                raise ValueError(
                    f"{modality}.dim={tower.dim}, but the embeddings of {language.name} have size "
                    f"{language.dim}: set it to that"
                )
            if injection is None:
                tower.scale(language.embedding_scale())
        if injection is not None and not any(True for _ in self.towers()):
            raise ValueError(
                "injection: there is no tower to look at: add image, audio or signal, or leave it out"
            )
        self.injection = None if injection is None else Injection(language, injection)

    def towers(self) -> Iterator[tuple[Modality, MediaTower]]:
        """The towers that this model has."""
        for modality in (Modality.IMAGE, Modality.AUDIO, Modality.SIGNAL):
            tower = getattr(self, modality.value)
            if tower is not None:
                yield modality, tower

    def forward(self, batch: Batch) -> Said:
        """What the model thinks of each target token of the text.

        Raises:
            ValueError: The run reads no text, or not a modality that the model has a tower for; a prompt is
                longer than the language model reads.
        """
        text = self._text(batch)
        read = self._read(batch, text)
        with self._shown(read):
            logits = self.language(read.embedded, read.length, read.at)
        owner = text.owner[read.row]
        return Said(logits, read.target, read.row, batch.place[owner.clamp(min=0)])

    def generate(
        self, batch: Batch, *, settings: GenerationConfig, together: bool = False
    ) -> Int64[Tensor, "rows new"]:
        """Token ids that answer what stands before the last answer of each row.

        Args:
            batch: With text; answers in it are not read.
            settings: See :meth:`LanguageModel.generate`.
            together: See :meth:`LanguageModel.generate`.

        Raises:
            ValueError: As :meth:`forward`; a prompt and the longest answer are longer than the language model
                reads.
        """
        read = self._read(batch, questions(self._text(batch)), new=settings.max_new_tokens or 0)
        copies = max(settings.num_beams or 1, settings.num_return_sequences or 1)
        with self._shown(read, copies=copies):
            return self.language.generate(read.embedded, read.length, settings=settings, together=together)

    def _text(self, batch: Batch) -> Input:
        if batch.text is None:
            raise ValueError("a language model needs text: set data.text (mmlab.data.prompt.PromptReader)")
        return batch.text

    def _read(self, batch: Batch, text: Input, *, new: int = 0) -> Interleaved:
        """Run every tower once, whatever the batch lacks, and put all in order; `new` tokens will follow."""
        media = {}
        for modality, tower in self.towers():
            inputs = batch.get(modality)
            if inputs is None:
                raise ValueError(
                    f"the model has a tower for {modality}, but the data module reads no {modality}: "
                    f"add it there, or remove the tower `{modality}`"
                )
            media[modality] = Media(tower(inputs), inputs)
        place = interleave if self.injection is None else put_beside
        read = place(text, self.language.embed, media)
        self._check_length(read, batch, text, new=new)
        return read

    def _shown(self, read: Interleaved, *, copies: int | None = None) -> AbstractContextManager[None]:
        """Let the language model see what stands beside the text; `copies` of each row where it generates."""
        if self.injection is None or read.beside is None:
            return nullcontext()
        if copies is None:
            return self.injection.reading(read.beside, read.length, packed=self.language.packing)
        return self.injection.answering(read.beside, read.length, copies=copies)

    def _check_length(self, read: Interleaved, batch: Batch, text: Input, *, new: int) -> None:
        limit, longest = self.language.max_length, int(read.length.max())
        # The last new token is said and not read.
        if limit is None or longest + max(new - 1, 0) <= limit:
            return
        owner = int(text.owner[read.length.argmax()])
        key = batch.keys[owner] if owner != NOBODY else "nobody"
        more, lower = "", "data.text.max_length"
        if new and longest <= limit:
            more, lower = f" and max_new_tokens={new}", f"model.decoding.max_new_tokens or {lower}"
        raise ValueError(
            f"sample {key!r} has {longest} tokens with its media{more}, but {self.language.name} "
            f"reads {limit}: lower {lower}, or give the tower a resampler"
        )
