"""How a language model answers: it says what comes next, or chooses among what it is given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from mmlab.batch import NOBODY, Batch
from mmlab.models.multimodal_lm import MultimodalLM, Said

# Settings that do nothing: what is not given transformers takes from the model's own generation config, and
# then from its own defaults, such as a `top_k` of 50.
_PLAIN: Mapping[str, Any] = {"min_length": 0, "no_repeat_ngram_size": 0, "length_penalty": 1.0}
_DRAWN: Mapping[str, Any] = {
    "top_k": 0, "min_p": 0.0, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0,
}  # fmt: skip


class Spoken(NamedTuple):
    """What a language model answers to one sample."""

    sample: int
    """Number in its batch."""
    ids: Int64[Tensor, " tokens"]


class Answering(ABC):
    """A way to answer."""

    chooses: ClassVar[bool]
    """Whether it needs samples that bring choices, each a row of text; other ways need one row a sample."""

    @abstractmethod
    def answer(self, model: MultimodalLM, batch: Batch, *, together: bool = False) -> list[Spoken]:
        """Answer every sample that has text; every rank must call it as often.

        Args:
            model: What answers.
            batch: With text.
            together: See :meth:`mmlab.models.language_model.LanguageModel.generate`.

        Raises:
            ValueError: Samples bring choices where it does not choose, or none where it does.
        """

    def check(self, *, choices: bool) -> None:
        """Raise ValueError unless it goes with prompts that bring `choices`, or none."""
        if choices and not self.chooses:
            raise ValueError(
                "the prompts bring choices, but model.decoding says how answers are generated: set it to "
                "Choosing (class_path: mmlab.models.decoding.Choosing), or leave data.text.choices out"
            )
        if self.chooses and not choices:
            raise ValueError(
                "model.decoding chooses, but the prompts bring nothing to choose among: set "
                "data.text.choices, or give decoding settings of generation"
            )

    def rows(self, batch: Batch) -> dict[int, list[int]]:
        """The rows of text that each sample owns."""
        found: dict[int, list[int]] = {}
        for row, owner in enumerate([] if batch.text is None else batch.text.owner.tolist()):
            if owner != NOBODY:
                found.setdefault(owner, []).append(row)
        for own in found.values():
            self.check(choices=len(own) > 1)
        return found


@dataclass(frozen=True)
class Decoding(Answering):
    """Settings of generation.

    Raises:
        ValueError: If a setting is out of its range.
    """

    chooses: ClassVar[bool] = False
    max_new_tokens: int = 32
    """Longest answer."""
    num_beams: int = 1
    """Beams that are searched; 1 takes the most likely token, or draws one."""
    sample: bool = False
    """Draw tokens instead of taking the most likely."""
    temperature: float = 1.0
    """Of drawing: below 1 sharper."""
    top_p: float = 1.0
    """Draw among the most likely tokens that hold this share of probability (Holtzman et al. 2020)."""
    repetition_penalty: float = 1.0
    """Divides the logits of tokens that were said (Keskar et al. 2019); 1 does nothing."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.num_beams < 1:
            raise ValueError(
                f"max_new_tokens={self.max_new_tokens}, num_beams={self.num_beams}: at least 1 each"
            )
        if not (self.temperature > 0 and 0 < self.top_p <= 1 and self.repetition_penalty > 0):
            raise ValueError(
                f"temperature={self.temperature}, top_p={self.top_p}, repetition_penalty="
                f"{self.repetition_penalty}: above 0, top_p at most 1"
            )

    def settings(self, model: PreTrainedModel, *, ends: Sequence[int] = ()) -> GenerationConfig:
        """For transformers, with the special tokens of a model.

        Args:
            model: What generates.
            ends: Tokens that end an answer beside those that its own generation config names.
        """
        own = model.generation_config
        assert own is not None, "a causal language model has a generation config"
        named = own.eos_token_id
        stops = list(named) if isinstance(named, list) else [] if named is None else [named]
        stops += [token for token in ends if token not in stops]
        padding = own.pad_token_id
        if padding is None and stops:
            padding = stops[0]
        drawn = {**_DRAWN, "temperature": self.temperature, "top_p": self.top_p} if self.sample else {}
        return GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            num_beams=self.num_beams,
            do_sample=self.sample,
            repetition_penalty=self.repetition_penalty,
            bos_token_id=own.bos_token_id,
            eos_token_id=stops or None,
            pad_token_id=padding,
            **_PLAIN,
            **drawn,
        )

    def answer(self, model: MultimodalLM, batch: Batch, *, together: bool = False) -> list[Spoken]:
        """Generate what follows each prompt."""
        rows = self.rows(batch)
        settings = self.settings(model.language.backbone, ends=model.language.ends)
        ids = model.generate(batch, settings=settings, together=together)
        return [Spoken(sample, ids[own[0]]) for sample, own in rows.items()]


@dataclass(frozen=True)
class Choosing(Answering):
    """Settings of choosing: the answer is the likeliest of the choices that a sample brings.

    One forward pass over a batch gives the log-probability of every token of every choice, what ends it
    included (Brown et al. 2020, arXiv:2005.14165, section 2.4). Of equally likely ones it takes the first.
    """

    chooses: ClassVar[bool] = True
    normalize: Literal["tokens", "none"] = "tokens"
    """What is compared: the mean of the log-probabilities over the tokens of a choice, or (`none`) their sum,
    which is log p(choice) and favours short choices."""

    def answer(self, model: MultimodalLM, batch: Batch, *, together: bool = False) -> list[Spoken]:
        """Take the likeliest choice of each sample."""
        rows = self.rows(batch)
        said: Said = model(batch)
        assert batch.text is not None, "the model has read it"
        found = likelihood(said, len(batch.text.owner))
        score = found.log_probability
        if self.normalize == "tokens":
            score = score / found.tokens.clamp(min=1)
        scores = score.tolist()
        best = {sample: max(own, key=scores.__getitem__) for sample, own in rows.items()}
        return [Spoken(sample, said.token[said.row == row]) for sample, row in best.items()]


class Likelihood(NamedTuple):
    """How likely a model holds what it is to say."""

    log_probability: Float[Tensor, " rows"]
    """Of all that is to be said in each row; 0 where that is nothing."""
    tokens: Int64[Tensor, " rows"]
    """How many tokens that is."""


def likelihood(said: Said, rows: int) -> Likelihood:
    """Sum the log-probabilities of the tokens to be said over each row of text, in float32.

    Args:
        said: What the model thinks of them.
        rows: Number of all rows, those with nothing to say included.
    """
    log_probability = -F.cross_entropy(said.logits.float(), said.token, reduction="none")
    return Likelihood(
        log_probability.new_zeros(rows).index_add_(0, said.row, log_probability),
        said.row.new_zeros(rows).index_add_(0, said.row, said.row.new_ones(len(said.row))),
    )
